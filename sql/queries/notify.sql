-- name: insert_notification
-- Keep what somebody is told; once for each message that asked for it, even if that was forgotten
-- to be done.
insert into notifications (id, channel, recipient, subject, body, body_html, provider, state,
                           correlation_id)
values (%(id)s, %(channel)s, %(recipient)s, %(subject)s, %(body)s, %(body_html)s, %(provider)s,
        'delivered', %(correlation_id)s)
on conflict (id) do nothing;

-- name: lock_notifications
-- For each of several reports, by its number here, the notification it is about, found by our id or
-- else the provider's; all locked, in one order everywhere: whoever reports on the same one waits
-- here, and then sees what we wrote.
select g.place, n.id::text
from unnest(%(channels)s::text[], %(notification_ids)s::uuid[], %(providers)s::text[],
            %(provider_message_ids)s::text[])
     with ordinality as g (channel, notification_id, provider, provider_message_id, place)
join notifications n
    on n.channel = g.channel
    and n.id = coalesce(g.notification_id, (
        select c.id from notifications c
        where c.provider = g.provider and c.provider_message_id = g.provider_message_id
    ))
order by n.id
for update of n;

-- name: insert_reports
-- Keep what providers said; once for each message.
insert into notification_reports (id, notification_id, provider, state, reason, occurred_at)
select message_id, notification_id, provider, state, reason, to_timestamp(occurred_at)
from json_to_recordset(%(reports)s::json) as g (
    message_id uuid, notification_id uuid, provider text, state text, reason text,
    occurred_at float8
)
on conflict (id) do nothing;

-- name: move_notifications
-- Let notifications be as far as the report of each that is furthest on, among equals the latest;
-- never back. `states` has every state, each further on than the one before it.
update notifications n
set state = r.state, state_reason = r.reason, state_changed_at = r.occurred_at
from unnest(%(notification_ids)s::uuid[]) as g (id)
cross join lateral (
    select state, reason, occurred_at
    from notification_reports
    where notification_id = g.id
    order by array_position(%(states)s::text[], state) desc, occurred_at desc, id desc
    limit 1
) as r
where n.id = g.id
  and array_position(%(states)s::text[], r.state) >= array_position(%(states)s::text[], n.state);

-- name: twice_told
-- Messages that are dead or wait although what they asked for was done.
select n.id::text as message_id, 'outbox' as also_in
from notifications n join outbox o using (id)
union all
select n.id::text, 'dead_letters'
from notifications n join dead_letters d on d.message_id = n.id::text
limit 20;

-- name: untold
-- Messages recorded as done that told nobody anything, and are no report of what became of that.
select p.message_id::text, p.channel
from processed_messages p
where p.channel in ('emails', 'sms') and p.outcome = 'done'
  and not exists (select from notifications n where n.id = p.message_id)
  and not exists (select from notification_reports r where r.id = p.message_id)
limit 20;

-- name: behind_reports
-- Notifications that are less far than a report of them says.
select n.id::text as notification_id, n.state, r.state as reported_state
from notifications n join notification_reports r on r.notification_id = n.id
where array_position(%(states)s::text[], n.state) < array_position(%(states)s::text[], r.state)
limit 20;
