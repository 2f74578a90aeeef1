-- name: bury
-- Keep a message that cannot be processed; once is enough for one that comes again.
insert into dead_letters (id, channel, message_id, message, reason, attempts)
values (%(id)s, %(channel)s, %(message_id)s, %(message)s::jsonb, %(reason)s, %(attempts)s)
on conflict (channel, message_id) do nothing;

-- name: count_by_channel
-- What an operator still has to look at.
select channel, count(*) from dead_letters group by channel order by channel;
