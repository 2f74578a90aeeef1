-- What people and programs changed by hand: replays, pauses, pushes. Append only, by month (UTC).

create table audit_logs (
    id          uuid not null,
    recorded_at timestamptz not null default now(),
    actor       text not null check (actor <> ''),
    action      text not null check (action <> ''),
    subject     text not null,
    details     jsonb not null default '{}',
    primary key (id, recorded_at)
) partition by range (recorded_at);

-- A month nobody made a partition for in time; normally empty.
create table audit_logs_other partition of audit_logs default;

create function audit_logs_are_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'audit_logs is append only' using errcode = 'restrict_violation';
end $$;
create trigger audit_logs_append_only before update or delete on audit_logs
    for each row execute function audit_logs_are_append_only();
