-- The table of the Bun peer: what somebody would write for this flow alone. No partitions, no outbox.

create table webhook_logs (
    id          uuid primary key,
    source      text not null,
    event_id    text not null,
    event_type  text not null,
    body        bytea not null,
    received_at timestamptz not null default now(),
    unique (source, event_id)
);
