-- Messages on their way. A row leaves only when its message is done or dead: channels carry,
-- PostgreSQL remembers.
--
--   waiting   no owner, no stream entry; due at available_at
--   leased    owner, not begun: a relay is handing it to a stream
--   streamed  stream_entry: a Redis stream carries it
--   begun     owner, begun: a worker is at it
--
-- Every change of hands increments handovers, so that whoever slept through a change is refused.

create table outbox (
    id             uuid primary key,
    channel        text not null check (channel <> ''),
    -- Not jsonb: what was said is kept as it was said, and costs no parsing.
    message        json not null,
    correlation_id text not null,
    dedup_key      text,
    -- Attempts begun; what was given back unharmed does not count.
    attempts       integer not null default 0 check (attempts >= 0),
    -- One object a failed attempt: attempt, at, worker, error.
    errors         jsonb not null default '[]',
    published_at   timestamptz not null default now(),
    available_at   timestamptz not null default now(),
    handovers      integer not null default 0 check (handovers >= 0),
    owner          uuid,
    begun          boolean not null default false,
    stream_entry   text,
    -- An attempt ended together with its worker. It may have been this message's doing, so it is
    -- tried alone from now on.
    lapsed         boolean not null default false,
    constraint begun_by_an_owner check (owner is not null or not begun),
    constraint in_one_place check (owner is null or stream_entry is null),
    -- Infinity cannot be waited for.
    constraint available_some_day check (
        available_at >= '1970-01-01 00:00:00+00' and available_at < '9999-01-01 00:00:00+00'
    )
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

create index outbox_due on outbox (channel, lapsed, available_at, id)
    where owner is null and stream_entry is null;
create index outbox_owned on outbox (owner) where owner is not null;
create index outbox_streamed on outbox (channel, id) where stream_entry is not null;
create index outbox_lapsed on outbox (channel) where lapsed;
create unique index outbox_dedup on outbox (channel, dedup_key) where dedup_key is not null;

-- What was done, so that it is not done again when it arrives once more. Pruned by age.
create table processed_messages (
    message_id   uuid primary key,
    channel      text not null,
    outcome      text not null check (outcome in ('done', 'discarded')),
    processed_at timestamptz not null default now()
);
create index processed_messages_processed_at on processed_messages using brin (processed_at);
