-- Messages that could not be processed, kept with the reason until an operator decides.

create table dead_letters (
    id         uuid primary key,
    channel    text not null check (channel <> ''),
    message_id text not null,
    message    jsonb not null,
    reason     text not null check (reason <> ''),
    attempts   integer not null check (attempts >= 1),
    dead_at    timestamptz not null default now(),
    -- A replayed journal meets the same bad message again: one letter is enough.
    unique (channel, message_id)
);
create index dead_letters_dead_at on dead_letters (dead_at);
