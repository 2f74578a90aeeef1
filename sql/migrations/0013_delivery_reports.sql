-- What became of what shoppers were told. Reports come late, doubled and out of order; a
-- notification moves forward only, and its history keeps all that was said.

alter table notifications
    drop constraint notifications_state_check,
    add constraint notifications_state_check check (
        state in ('queued', 'sent', 'deferred', 'delivered', 'dropped', 'failed', 'bounced',
                  'complained')
    ),
    add column provider_message_id text check (provider_message_id <> ''),
    add column state_reason        text not null default '',
    add column state_changed_at    timestamptz;
comment on column notifications.provider_message_id is 'What the provider calls it.';
comment on column notifications.state_changed_at is
    'When it was so, by the report that says it; null while the state is our own word.';
create unique index notifications_provider_message on notifications (provider, provider_message_id)
    where provider_message_id is not null;

create table notification_reports (
    id              uuid primary key,
    notification_id uuid not null references notifications,
    provider        text not null check (provider <> ''),
    state           text not null check (
        state in ('sent', 'deferred', 'delivered', 'dropped', 'failed', 'bounced', 'complained')
    ),
    reason          text not null,
    occurred_at     timestamptz not null
);
comment on column notification_reports.id is 'The id of the message that is this report.';
create index notification_reports_notification on notification_reports (notification_id);
