-- name: publish
-- Write messages; one whose dedup_key waits already is left out. Whoever relays is told at commit,
-- once a transaction, if something is due.
with given as (
    select *
    from unnest(
        %(ids)s::uuid[], %(channels)s::text[], %(messages)s::text[], %(correlation_ids)s::text[],
        %(dedup_keys)s::text[], %(available_at)s::double precision[]
    ) as g (id, channel, message, correlation_id, dedup_key, available_at)
), written as (
    insert into outbox (id, channel, message, correlation_id, dedup_key, available_at)
    select id, channel, message::json, correlation_id, dedup_key,
           coalesce(to_timestamp(available_at), now())
    from given
    on conflict (channel, dedup_key) where dedup_key is not null do nothing
    returning id, available_at
), told as (
    select pg_notify('couponflow_outbox', '')
    where exists (select from written where available_at <= clock_timestamp())
)
select id::text from written where (select count(*) from told) >= 0;

-- name: publish_unknown
-- The same, for messages whose ids are made from what they follow from: one that is on its way, done
-- or dead already is left out, too.
with given as (
    select *
    from unnest(
        %(ids)s::uuid[], %(channels)s::text[], %(messages)s::text[], %(correlation_ids)s::text[],
        %(dedup_keys)s::text[], %(available_at)s::double precision[]
    ) as g (id, channel, message, correlation_id, dedup_key, available_at)
), written as (
    insert into outbox (id, channel, message, correlation_id, dedup_key, available_at)
    select id, channel, message::json, correlation_id, dedup_key,
           coalesce(to_timestamp(available_at), now())
    from given
    where not exists (select from processed_messages p where p.message_id = given.id)
      and not exists (
          select from dead_letters d
          where d.channel = given.channel and d.message_id = given.id::text
      )
    -- In one order everywhere, since two transactions may write the same.
    order by id
    on conflict do nothing
    returning id, available_at
), told as (
    select pg_notify('couponflow_outbox', '')
    where exists (select from written where available_at <= clock_timestamp())
)
select id::text from written where (select count(*) from told) >= 0;

-- name: claim
-- Take due messages of a channel, oldest first; nobody else can have them until they are given
-- back. For a channel in memory the attempt begins with that (begun).
update outbox
set owner = %(owner)s, begun = %(begun)s, handovers = handovers + 1,
    attempts = attempts + %(begun)s::boolean::integer
where id = any(array(
    select id from outbox
    where channel = %(channel)s and not lapsed and owner is null and stream_entry is null
      and available_at <= now()
      and exists (select from workers where id = %(owner)s and expired_at is null)
    order by available_at, id
    limit %(limit)s
    for update skip locked
))
returning id::text, message::text, correlation_id, extract(epoch from published_at)::float8,
          attempts + (not %(begun)s::boolean)::integer, handovers, lapsed,
          extract(epoch from available_at)::float8;

-- name: claim_lapsed
-- Take one message whose worker died over it, unless this worker is at one already, of whichever
-- channel: if it dies, that must be the doing of one.
update outbox
set owner = %(owner)s, begun = %(begun)s, handovers = handovers + 1,
    attempts = attempts + %(begun)s::boolean::integer
where id = any(array(
    select id from outbox
    where channel = %(channel)s and lapsed and owner is null and stream_entry is null
      and available_at <= now()
      and exists (select from workers where id = %(owner)s and expired_at is null)
      and not exists (
          select from outbox mine
          where mine.owner = %(owner)s and mine.lapsed
            and (mine.begun or mine.channel = %(channel)s)
      )
    order by available_at, id
    limit 1
    for update skip locked
))
returning id::text, message::text, correlation_id, extract(epoch from published_at)::float8,
          attempts + (not %(begun)s::boolean)::integer, handovers, lapsed,
          extract(epoch from available_at)::float8;

-- name: seconds_to_next
-- How long until the next message of a channel is due; null when none waits.
select min(greatest(0, extract(epoch from available_at - clock_timestamp())))::float8
from (
    (select available_at from outbox
     where channel = %(channel)s and not lapsed and owner is null and stream_entry is null
     order by available_at limit 1)
    union all
    -- What is due of these waits for the one before it, whose end is told.
    (select available_at from outbox
     where channel = %(channel)s and lapsed and owner is null and stream_entry is null
       and available_at > clock_timestamp()
     order by available_at limit 1)
) as earliest;

-- name: record_streamed
-- Note which entries of a stream carry which messages, and let go of them; what a consumer has
-- begun meanwhile is its own by now.
update outbox o
set owner = null, stream_entry = g.entry
from unnest(%(ids)s::uuid[], %(handovers)s::integer[], %(entries)s::text[]) as g (id, handovers, entry)
where o.id = g.id and o.handovers = g.handovers and not o.begun;

-- name: begin
-- Record attempts that are about to be made of messages that came through a stream. What another
-- has begun, what was handed over anew and what is done is not returned: it is to be dropped.
update outbox o
set owner = %(owner)s, begun = true, stream_entry = null, handovers = g.handovers + 1,
    attempts = o.attempts + (not o.begun)::integer
from unnest(%(ids)s::uuid[], %(handovers)s::integer[], %(again)s::boolean[])
     as g (id, handovers, again)
where o.id = g.id
  and (
      (o.handovers = g.handovers and not o.begun)
      -- Begun by this worker before: the answer was lost, or the consumer that had it crashed.
      or (g.again and o.begun and o.owner = %(owner)s and o.handovers = g.handovers + 1)
  )
  and exists (select from workers where id = %(owner)s and expired_at is null)
returning o.id::text, o.attempts, o.handovers, o.lapsed;

-- name: is_worker_alive
-- Whether this incarnation may still begin messages.
select exists (select from workers where id = %(owner)s and expired_at is null);

-- name: hold
-- Lock messages that are worked on, in one order everywhere.
select o.id::text
from unnest(%(ids)s::uuid[], %(handovers)s::integer[]) as g (id, handovers)
join outbox o on o.id = g.id and o.handovers = g.handovers and o.begun
order by o.id
for update of o;

-- name: finish
-- Let done messages go and remember that they are done; those of another by now stay.
with gone as (
    delete from outbox o
    using unnest(%(ids)s::uuid[], %(handovers)s::integer[]) as g (id, handovers)
    where o.id = g.id and o.handovers = g.handovers and o.begun
    returning o.id, o.channel
)
insert into processed_messages (message_id, channel, outcome)
select id, channel, %(outcome)s from gone
on conflict (message_id) do nothing
returning message_id::text;

-- name: process
-- Remember that a message without a row here is done; nothing is returned if it was before.
insert into processed_messages (message_id, channel, outcome)
values (%(id)s, %(channel)s, %(outcome)s)
on conflict (message_id) do nothing
returning message_id::text;

-- name: put_back
-- Give messages back for a later attempt. An attempt that does not count is taken off again.
update outbox o
set owner = null, begun = false, stream_entry = null,
    lapsed = o.lapsed and not g.survived, handovers = o.handovers + 1,
    attempts = greatest(0, o.attempts - g.forgiven),
    -- Without a time it keeps its place in the order.
    available_at = coalesce(
        to_timestamp(g.available_at), clock_timestamp() + g.after_seconds * interval '1 second',
        o.available_at
    ),
    errors = case when g.error is null then o.errors else o.errors || g.error::jsonb end
from unnest(
    %(ids)s::uuid[], %(handovers)s::integer[], %(available_at)s::double precision[],
    %(after_seconds)s::double precision[], %(errors)s::text[], %(forgiven)s::integer[],
    %(survived)s::boolean[]
) as g (id, handovers, available_at, after_seconds, error, forgiven, survived)
where o.id = g.id and o.handovers = g.handovers
returning o.id::text;

-- name: put_off
-- Give back messages that this version cannot read, for a newer one; those that were put off too
-- often are not touched, and not returned.
update outbox o
set owner = null, begun = false, stream_entry = null, handovers = o.handovers + 1,
    attempts = greatest(0, o.attempts - o.begun::integer),
    available_at = clock_timestamp() + %(after_seconds)s * interval '1 second',
    errors = o.errors || g.error::jsonb
from unnest(%(ids)s::uuid[], %(handovers)s::integer[], %(errors)s::text[])
    as g (id, handovers, error)
where o.id = g.id and o.handovers = g.handovers and not (o.begun and o.owner <> %(owner)s)
  and jsonb_array_length(o.errors) < %(times_max)s
returning o.id::text;

-- name: is_known
-- Whether a message is on its way, done or dead.
select exists (select from outbox where id = %(id)s)
    or exists (select from processed_messages where message_id = %(id)s)
    or exists (select from dead_letters where message_id = %(id)s::text);

-- name: adopt
-- Take in a message that came through a stream without a row here, to try it again later; not one
-- that is done or dead, and came again only because the stream was not told.
insert into outbox (id, channel, message, correlation_id, attempts, errors, published_at,
                    available_at, lapsed)
select %(id)s::uuid, %(channel)s, %(message)s::json, %(correlation_id)s, %(attempts)s,
       %(errors)s::jsonb, to_timestamp(%(published_at)s),
       coalesce(
           to_timestamp(%(available_at)s::double precision),
           clock_timestamp() + %(after_seconds)s * interval '1 second'
       ),
       %(lapsed)s
where not exists (select from processed_messages where message_id = %(id)s::uuid)
  and not exists (
      select from dead_letters where channel = %(channel)s and message_id = %(id)s::text
  )
on conflict (id) do nothing;

-- name: take_out
-- Remove a message that is to be buried; its errors so far go with it.
delete from outbox
where id = %(id)s and handovers = %(handovers)s
returning errors, extract(epoch from published_at)::float8;

-- name: owned
-- What a worker owns of a channel.
select id::text, handovers, begun from outbox
where owner = %(owner)s and channel = %(channel)s;

-- name: release_all
-- Give back whatever a worker that ends in order has not finished; no attempt is lost.
update outbox
set owner = null, begun = false, handovers = handovers + 1,
    attempts = greatest(0, attempts - begun::integer)
where owner = %(owner)s;

-- name: free_lapsed
-- Free the messages of workers whose lease has ended, and of those that are not known any more.
-- What a worker that merely sleeps has locked is left to its transaction: nobody may wait for that.
update outbox o
set owner = null, begun = false, lapsed = o.lapsed or o.begun, handovers = o.handovers + 1,
    errors = case when o.begun then o.errors || jsonb_build_object(
        'attempt', o.attempts,
        'at', extract(epoch from clock_timestamp()),
        'worker', coalesce((select name from workers where id = o.owner), o.owner::text),
        'error', 'the worker died, or lost its lease, during this attempt'
    ) else o.errors end
where o.id = any(array(
    select id from outbox
    where owner = any(array(
        select owners.owner
        from (select distinct owner from outbox where owner is not null) as owners
        left join workers w on w.id = owners.owner
        where w.id is null or w.expired_at is not null
    ))
    for update skip locked
))
returning o.channel;

-- name: streamed_page
-- Messages that a stream is believed to carry, a page at a time.
select id::text, stream_entry, handovers from outbox
where channel = %(channel)s and stream_entry is not null and id > %(after)s
order by id
limit %(limit)s;

-- name: reset_lost
-- Make messages due again that their stream has lost; what somebody has begun is not lost.
update outbox o
set stream_entry = null, handovers = o.handovers + 1
from unnest(%(ids)s::uuid[], %(handovers)s::integer[]) as g (id, handovers)
where o.id = g.id and o.handovers = g.handovers and o.stream_entry is not null
returning o.id::text;

-- name: count_due
-- How many messages of a channel are due, counting no further than needed.
select count(*) from (
    select from outbox
    where channel = %(channel)s and not lapsed and owner is null and stream_entry is null
      and available_at <= now()
    limit %(limit)s
) as due;

-- name: count_by_channel
-- What is in the outbox, by channel and state.
select channel,
       count(*) filter (where owner is null and stream_entry is null and available_at <= now()),
       count(*) filter (where owner is null and stream_entry is null and available_at > now()),
       count(*) filter (where owner is not null),
       count(*) filter (where stream_entry is not null),
       coalesce(extract(epoch from now() - min(available_at) filter (
           where available_at <= now())), 0)::float8
from outbox group by channel order by channel;

-- name: prune_processed
-- Forget what was done long ago, a bounded number at a time.
delete from processed_messages
where message_id = any(array(
    select message_id from processed_messages
    where processed_at < now() - %(days)s * interval '1 day'
    limit %(limit)s
));
