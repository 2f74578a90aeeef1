-- Daemons that work on messages, each known by the incarnation it made up at its start. Whoever
-- owns a message owns it for as long as the lease in this table lives: one row is renewed, however
-- many messages are owned.

create table workers (
    id              uuid primary key,
    name            text not null check (name <> ''),
    roles           text[] not null,
    version         text not null,
    started_at      timestamptz not null default now(),
    seen_at         timestamptz not null default now(),
    lease_until     timestamptz not null,
    -- Set once another daemon has taken over: this incarnation can never renew its lease again.
    expired_at      timestamptz,
    jobs_done       bigint not null default 0 check (jobs_done >= 0),
    jobs_per_minute double precision not null default 0 check (jobs_per_minute >= 0)
);
comment on table workers is
    'A daemon that ends in order deletes its row; the row of one that vanished stays, so that it
     can be reported as missing.';
