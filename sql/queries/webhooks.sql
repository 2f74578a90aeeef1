-- name: store
-- Write events down with the messages that pass them on, unless they were taken before; the ids of
-- those that are new. One statement, so one transaction. The relays are told by another: a
-- transaction that notifies holds a lock of the whole server while it commits.
with given as (
    select id, to_timestamp(received_at) as received_at, source, event_type, event_id, method, query,
           headers, body, substring(%(hashes)b::bytea from 32 * place::integer - 31 for 32) as hash,
           address, message
    from rows from (
        json_to_recordset(%(events)s::json) as (
            id uuid, received_at float8, source text, event_type text, event_id text, method text,
            query text, headers json, address text, message json
        ),
        unnest(%(bodies)b::bytea[])
    ) with ordinality as g (id, received_at, source, event_type, event_id, method, query, headers,
                            address, message, body, place)
), fresh as (
    insert into webhook_events (source, event_id, webhook_id, received_at)
    select source, event_id, id, received_at from given
    on conflict do nothing
    returning webhook_id
), logged as (
    insert into webhook_logs (id, received_at, source, event_type, event_id, verdict, method, query,
                              headers, body, body_bytes, body_sha256, address)
    select id, received_at, source, event_type, event_id, 'verified', method, query, headers, body,
           octet_length(body), hash, address
    from given join fresh on webhook_id = id
), queued as (
    insert into outbox (id, channel, message, correlation_id, published_at, available_at)
    select id, 'webhooks', message, id::text, received_at, received_at
    from given join fresh on webhook_id = id
)
select webhook_id::text from fresh;

-- name: wake_relays
-- Heard at once: it is a transaction of its own.
select pg_notify('couponflow_outbox', '');

-- name: store_refusal
-- Keep what was not believed, for whoever looks into it.
insert into webhook_logs (id, received_at, source, event_type, event_id, verdict, detail, method,
                          query, headers, body, body_bytes, body_sha256, address)
values (%(webhook_id)s, to_timestamp(%(received_at)s), %(source)s, '', '', %(verdict)s, %(detail)s,
        %(method)s, %(query)s, '{}', %(body)s, %(body_bytes)s, %(body_sha256)s, %(address)s);

-- name: read_events
-- Verified events. The moment finds the partition; it lost less than a microsecond on its way.
select w.id::text, event_type, event_id, method, query, headers, body,
       extract(epoch from received_at)::float8
from unnest(%(ids)s::uuid[], %(received_at)s::float8[]) as g (id, moment)
cross join lateral (
    select * from webhook_logs l
    where l.id = g.id and verdict = 'verified'
      and received_at between to_timestamp(g.moment) - interval '1 millisecond'
                          and to_timestamp(g.moment) + interval '1 millisecond'
    limit 1
) as w;

-- name: latest_events
-- When each source was last believed: the newest row of each, by the index.
select source, (
    select received_at from webhook_logs l
    where l.source = g.source and verdict = 'verified'
    order by received_at desc limit 1
)
from unnest(%(sources)s::text[]) as g (source);

-- name: oldest_waiting
-- When the oldest event came whose message waits.
select min(published_at) from outbox where channel = 'webhooks';

-- name: prune_events
-- Forget the ids of old events, a bounded number at a time.
delete from webhook_events
where (source, event_id) in (
    select source, event_id from webhook_events
    where received_at < now() - %(days)s * interval '1 day'
    limit %(limit)s
);

-- name: insert_metric
-- Keep what another service measured, once.
insert into reported_metrics (id, name, value, labels, measured_at)
values (%(id)s, %(name)s, %(value)s, %(labels)s::jsonb, to_timestamp(%(measured_at)s))
on conflict (id) do nothing;

-- name: lost_events
-- Events of the days for which it is remembered what was done, whose message is nowhere: not
-- waiting, not done, not dead, and not given up by an operator.
select l.id::text as webhook_id, l.source, l.event_id
from webhook_logs l
where l.verdict = 'verified'
  and l.received_at > now() - %(hours)s * interval '1 hour'
  and not exists (select from outbox o where o.id = l.id)
  and not exists (select from processed_messages p where p.message_id = l.id)
  and not exists (
      select from dead_letters d where d.channel = 'webhooks' and d.message_id = l.id::text
  )
  and l.id::text not in (
      select details #>> '{letter,message_id}' from audit_logs
      where action = 'dead_letters.discard' and details #>> '{letter,message_id}' is not null
        and recorded_at > now() - %(hours)s * interval '1 hour'
  )
limit 20;

-- name: doubled_events
-- Events that were taken twice within the time in which their ids are remembered.
select source, event_id, count(*)::text as times
from webhook_logs
where verdict = 'verified' and received_at > now() - interval '2 days'
group by source, event_id
having count(*) > 1
limit 20;

-- name: event_status
-- How far an event is, in the words of operators: nothing stores it.
case when w.verdict <> 'verified' then 'refused'
     when {is_waiting} then 'waiting'
     when {is_dead} then 'dead'
     else 'processed' end

-- name: event_waits
-- Its message is on its way, or that of a replay.
(exists (select from outbox o where o.id = w.id)
 or exists (
     select from outbox o where o.channel = 'webhooks' and o.dedup_key = 'replay:' || w.id::text
 ))

-- name: event_is_dead
-- A message of its story is dead.
exists (select from dead_letters d where d.correlation_id = w.id::text)

-- name: only_waiting
-- The condition of a status, put in place of {of_status}; few are waiting or dead among many events,
-- so these begin at the few.
w.verdict = 'verified' and w.id = any(array(
    select id from outbox where channel = 'webhooks'
    union all
    select substring(
        dedup_key from '^replay:([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$'
    )::uuid
    from outbox where channel = 'webhooks' and dedup_key is not null
))

-- name: only_dead
-- The same for a dead event, unless a replay of it is on its way.
w.verdict = 'verified' and not {is_waiting} and w.id = any(array(
    select substring(
        correlation_id from '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
    )::uuid
    from dead_letters
))

-- name: only_processed
-- The same for what is verified and neither waits nor is dead.
w.verdict = 'verified' and not {is_waiting} and not {is_dead}

-- name: only_refused
-- The same for what was not believed.
w.verdict <> 'verified'

-- name: only_verified
-- The same for all that was believed.
w.verdict = 'verified'

-- name: matching
-- The condition of a filter, put in place of {matching} below; what is null is not asked for.
(%(source)s::text is null or w.source = %(source)s)
and (%(event_type)s::text is null or w.event_type = %(event_type)s)
and (%(since)s::timestamptz is null or w.received_at >= %(since)s)
and (%(until)s::timestamptz is null or w.received_at < %(until)s)
and (%(text)s::bytea is null
     or position(%(text)s in w.body) > 0 or position(%(text)s in convert_to(w.query, 'UTF8')) > 0)
and (%(ids)s::uuid[] is null or w.id = any(%(ids)s))
and {of_status}

-- name: event_summary
-- What a list shows, put in place of {summary} below.
w.id::text, w.received_at, w.source, w.event_type, w.event_id, w.verdict, {status}, w.body_bytes

-- name: list_events
-- Newest first, from the place where the page before ended. Ids follow the time, and of the two only
-- they have an index of their own.
select {summary}
from webhook_logs w
where {matching}
  and (%(before_id)s::uuid is null or w.id < %(before_id)s)
order by w.id desc
limit %(limit)s;

-- name: list_events_of_source
-- The same for one source, along its index.
select {summary}
from webhook_logs w
where {matching}
  and (%(before_at)s::timestamptz is null
       or (w.received_at, w.id) < (%(before_at)s, %(before_id)s::uuid))
order by w.received_at desc, w.id desc
limit %(limit)s;

-- name: count_events
-- The largest groups of events that match, each with how many match in all.
select source, event_type, status, count(*), (sum(count(*)) over ())::bigint
from (
    select w.source, w.event_type, {status} as status
    from webhook_logs w
    where {matching}
) as matched
group by source, event_type, status
order by count(*) desc, source, event_type, status
limit %(groups)s;

-- name: show_event
-- One event in full.
select {summary}, w.detail, w.method, w.query, w.headers, w.body, encode(w.body_sha256, 'hex'),
       w.address
from webhook_logs w
where w.id = %(id)s;

-- name: letters_of_events
-- The dead letters of events' stories, oldest first.
select correlation_id, id::text, channel, message_id, reason, dead_at
from dead_letters
where correlation_id = any(%(ids)s::text[])
order by dead_at, id;

-- name: message_states
-- Where messages are; of one that is nowhere there is no row.
with asked as (
    select * from unnest(%(ids)s::uuid[], %(channels)s::text[]) as a (id, channel)
)
select id::text, 'waiting', '' from asked join outbox using (id)
union all
select id::text, outcome, '' from asked join processed_messages on message_id = id
union all
select a.id::text, 'dead', d.reason
from asked a join dead_letters d on d.channel = a.channel and d.message_id = a.id::text;

-- name: events_to_replay
-- The next events that match, oldest first.
select w.id::text, w.source, w.verdict, extract(epoch from w.received_at)::float8, {status}
from webhook_logs w
where {matching}
  and (%(after_id)s::uuid is null or w.id > %(after_id)s)
order by w.id
limit %(limit)s;

-- name: events_are_left
-- Whether any events come after those that were dealt with.
select exists (
    select from webhook_logs w
    where {matching} and (%(after_id)s::uuid is null or w.id > %(after_id)s)
);
