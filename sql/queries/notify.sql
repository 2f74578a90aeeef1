-- name: insert_notification
-- Keep what somebody is told; once for each message that asked for it.
insert into notifications (id, channel, recipient, subject, body, body_html, provider, state,
                           correlation_id)
values (%(id)s, %(channel)s, %(recipient)s, %(subject)s, %(body)s, %(body_html)s, %(provider)s,
        'delivered', %(correlation_id)s);

-- name: twice_told
-- Messages that are dead or wait although what they asked for was done.
select n.id::text as message_id, 'outbox' as also_in
from notifications n join outbox o using (id)
union all
select n.id::text, 'dead_letters'
from notifications n join dead_letters d on d.message_id = n.id::text
limit 20;

-- name: untold
-- Messages recorded as done that told nobody anything.
select p.message_id::text, p.channel
from processed_messages p left join notifications n on n.id = p.message_id
where p.channel in ('emails', 'sms') and p.outcome = 'done' and n.id is null
limit 20;
