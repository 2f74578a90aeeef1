-- name: bury
-- Keep a message that cannot be processed; once is enough for one that comes again.
insert into dead_letters (
    id, channel, message_id, message, reason, attempts, correlation_id, published_at, errors
)
values (
    %(id)s, %(channel)s, %(message_id)s, %(message)s::jsonb, %(reason)s, %(attempts)s,
    %(correlation_id)s, to_timestamp(%(published_at)s::double precision), %(errors)s::jsonb
)
on conflict (channel, message_id) do nothing;

-- name: count_by_channel
-- What an operator still has to look at.
select channel, count(*) from dead_letters group by channel order by channel;

-- name: matching
-- The condition of a filter, put in place of {matching} below; what is null is not asked for.
(%(channel)s::text is null or channel = %(channel)s)
and (%(reason_contains)s::text is null
     or strpos(lower(reason), lower(%(reason_contains)s)) > 0)
and (%(message_type)s::text is null or message ->> 'type' = %(message_type)s)
and (%(correlation_id)s::text is null or correlation_id = %(correlation_id)s)
and (%(since)s::timestamptz is null or dead_at >= %(since)s)
and (%(until)s::timestamptz is null or dead_at < %(until)s)
and (%(ids)s::uuid[] is null or id = any(%(ids)s) or message_id = any(%(message_ids)s::text[]))

-- name: list_letters
-- Newest first, from the place where the page before ended.
select id::text, channel, message_id, coalesce(message ->> 'type', ''), reason, attempts,
       correlation_id, published_at, dead_at
from dead_letters
where {matching}
  and (%(before_at)s::timestamptz is null
       or (dead_at, id) < (%(before_at)s, %(before_id)s::uuid))
order by dead_at desc, id desc
limit %(limit)s;

-- name: count_letters
-- The largest groups of letters that match, each with how many match in all.
select channel, reason, count(*), (sum(count(*)) over ())::bigint
from dead_letters
where {matching}
group by channel, reason
order by count(*) desc, channel, reason
limit %(groups)s;

-- name: show_letter
-- A letter of that id; else the latest whose message has it.
select id::text, channel, message_id, coalesce(message ->> 'type', ''), reason, attempts,
       correlation_id, published_at, dead_at, message::text, errors
from dead_letters
where {matching}
order by id = any(%(ids)s) desc, dead_at desc, id desc
limit 1;

-- name: instant
-- Letters that die from now on are not touched: a replay must not chase what dies of it again.
select clock_timestamp();

-- name: lock_letters
-- The next letters to be replayed or discarded, oldest first; another's are left to it.
select id::text, channel, message_id, message::text, reason, attempts, correlation_id,
       published_at, dead_at, errors
from dead_letters
where {matching}
  and dead_at <= %(as_of)s
  and (%(after_at)s::timestamptz is null or (dead_at, id) > (%(after_at)s, %(after_id)s::uuid))
order by dead_at, id
limit %(limit)s
for update skip locked;

-- name: letters_are_left
-- Whether any letters come after those that were dealt with. None is locked: whoever works on them
-- at the same time would pass over it.
select exists (
    select from dead_letters
    where {matching}
      and dead_at <= %(as_of)s
      and (%(after_at)s::timestamptz is null or (dead_at, id) > (%(after_at)s, %(after_id)s::uuid))
);

-- name: known_messages
-- Which messages are on their way or done, and so must not be written again.
select id::text, 'outbox' from outbox where id = any(%(ids)s::uuid[])
union all
select message_id::text, outcome from processed_messages where message_id = any(%(ids)s::uuid[]);

-- name: publish_again
-- Messages as they were, with all their attempts before them. The fencing token starts above every
-- token of the life before: whoever still holds one of those can do nothing with it.
insert into outbox (id, channel, message, correlation_id, errors, published_at, handovers)
select id, channel, message::json, correlation_id, errors::jsonb,
       coalesce(to_timestamp(published_at), now()), handovers
from unnest(
    %(ids)s::uuid[], %(channels)s::text[], %(messages)s::text[], %(correlation_ids)s::text[],
    %(errors)s::text[], %(published_at)s::double precision[], %(handovers)s::integer[]
) as g (id, channel, message, correlation_id, errors, published_at, handovers)
on conflict (id) do nothing
returning id::text;

-- name: remove_letters
delete from dead_letters where id = any(%(ids)s::uuid[]);

-- name: wake_relays
-- Heard at the commit.
select pg_notify('couponflow_outbox', '');
