-- What outside services told us, as it came: kept before the sender is answered.

create table webhook_logs (
    id          uuid not null,
    received_at timestamptz not null,
    source      text not null check (source <> ''),
    -- What the sender calls it; empty where that could not be read.
    event_type  text not null,
    -- Unique within the source: the sender's own, else `sha256:` and the hash of query and body.
    event_id    text not null,
    verdict     text not null
        check (verdict in ('verified', 'bad-signature', 'stale', 'forbidden-address')),
    detail      text not null default '',
    method      text not null check (method in ('GET', 'POST')),
    -- Without secrets.
    query       text not null,
    headers     json not null,
    -- The raw bytes; of what was refused only the beginning.
    body        bytea not null,
    body_bytes  integer not null check (body_bytes >= octet_length(body)),
    body_sha256 bytea not null check (octet_length(body_sha256) = 32),
    address     text not null,
    -- Ids carry their own time, so the two always go together.
    primary key (id, received_at),
    constraint verified_in_full
        check (verdict <> 'verified' or (body_bytes = octet_length(body) and event_id <> '')),
    constraint refused_in_part check (verdict = 'verified' or octet_length(body) <= 256)
) partition by range (received_at);

comment on column webhook_logs.id is
    'Also the id of the message on channel `webhooks`, and the correlation id of all that follows.';

-- A day nobody made a partition for in time; normally empty.
create table webhook_logs_other partition of webhook_logs default;

create index webhook_logs_source on webhook_logs (source, received_at);
-- What was refused is rare, and would else be looked for among everything.
create index webhook_logs_refused on webhook_logs (id) where verdict <> 'verified';

-- Which events were taken, whatever day they came on: an event has its effect once, and a sender
-- may repeat it for weeks. Pruned by age, but for the newest of each source.
create table webhook_events (
    source      text not null,
    event_id    text not null,
    webhook_id  uuid not null,
    received_at timestamptz not null,
    primary key (source, event_id)
);
-- What is old, and what is newest. No BRIN index: rows go to places of others that were pruned.
create index webhook_events_source on webhook_events (source, received_at);

-- What other services measured and told us of (analytics.metric), as it was told.
create table reported_metrics (
    id          uuid primary key,
    name        text not null check (name <> ''),
    value       double precision not null,
    labels      jsonb not null default '{}',
    measured_at timestamptz not null
);
create index reported_metrics_name on reported_metrics (name, measured_at);
comment on column reported_metrics.id is 'The id of the message that told of it.';

-- Letters are looked for by the event they followed from.
create index dead_letters_correlation on dead_letters (correlation_id);
