-- What an operator has said of a channel, for the whole installation. No row: nothing was said.

create table channel_controls (
    channel         text primary key check (channel <> ''),
    paused          boolean not null default false,
    -- Messages a second for each daemon; null is no limit.
    rate_per_second double precision check (rate_per_second > 0),
    -- Messages at once in each daemon; null leaves it to the settings.
    concurrency     integer check (concurrency > 0),
    changed_by      text not null,
    changed_at      timestamptz not null default now()
);

create function channel_controls_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('couponflow_controls', '');
    return null;
end $$;
create trigger channel_controls_notify after insert or update or delete on channel_controls
    for each statement execute function channel_controls_notify();
