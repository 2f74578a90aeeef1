-- What every attempt at a dead message failed with, and whom its story belongs to.

alter table dead_letters
    add column correlation_id text not null default '',
    add column published_at   timestamptz,
    add column errors         jsonb not null default '[]';
create index dead_letters_channel on dead_letters (channel, dead_at);
