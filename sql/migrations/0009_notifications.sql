-- What shoppers were told, or are to be told. The row comes before the sending.

create table notifications (
    id             uuid primary key,
    channel        text not null check (channel in ('emails', 'sms')),
    recipient      text not null check (recipient <> ''),
    subject        text not null default '',
    body           text not null,
    body_html      text not null default '',
    provider       text not null,
    state          text not null check (state in ('delivered')),
    correlation_id text not null,
    created_at     timestamptz not null default now()
);
comment on column notifications.id is 'The id of the message that asked for it.';
create index notifications_recipient on notifications (recipient, created_at);
