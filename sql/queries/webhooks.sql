-- name: store
-- Write events down with the messages that pass them on, unless they were taken before; the ids of
-- those that are new. One statement, so one transaction. The relays are told by another: a
-- transaction that notifies holds a lock of the whole server while it commits. A message is due by
-- PostgreSQL's clock, so one taken while the daemon's was ahead must not wait for the difference.
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
    select id, 'webhooks', message, id::text, received_at, least(received_at, now())
    from given join fresh on webhook_id = id
)
select webhook_id::text, (
    -- What is answered is forgotten by its sender: where the server or the role is set to commit
    -- without waiting for the disk, this transaction waits.
    select set_config('synchronous_commit', 'on', true)
    where current_setting('synchronous_commit') = 'off'
)
from fresh;

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
-- When each source was last believed, by the index; `webhook_logs` has what was refused besides,
-- perhaps a lot of it. What a clock that was ahead has dated into the future says nothing yet.
select source, (
    select max(received_at) from webhook_events e
    where e.source = g.source and received_at <= now()
)
from unnest(%(sources)s::text[]) as g (source);

-- name: oldest_waiting
-- When the oldest event came whose message waits. That of a replay, which has an id of its own, is
-- younger than its event.
select min(least(
    published_at,
    case when id::text <> correlation_id and json_typeof(message -> 'received_at') = 'number'
         then to_timestamp((message -> 'received_at')::text::float8) end
))
from outbox where channel = 'webhooks';

-- name: prune_events
-- Forget the ids of old events, a bounded number at a time, source by source along the index. The
-- newest of each stays: it says when the source was last believed.
with recursive sources as (
    (select source from webhook_events order by source limit 1)
    union all
    select (
        select e.source from webhook_events e where e.source > s.source order by e.source limit 1
    )
    from sources s where s.source is not null
)
delete from webhook_events
where ctid = any(array(
    select old.ctid
    from sources s cross join lateral (
        select e.ctid from webhook_events e
        where e.source = s.source
          and e.received_at < now() - %(days)s * interval '1 day'
          and e.received_at < (
              select max(received_at) from webhook_events n
              where n.source = s.source and received_at <= now()
          )
        order by e.received_at
        limit %(limit)s
    ) as old
    limit %(limit)s
));

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
-- How far an event is, in the words of operators: nothing stores it. One that is told again waits
-- whatever else is known of it; one of whose messages is dead needs somebody though others wait.
case when w.verdict <> 'verified' then 'refused'
     when {is_told} then 'waiting'
     when {is_dead} then 'dead'
     when {is_followed} then 'waiting'
     when {is_given_up} then 'given-up'
     else 'processed' end

-- name: event_is_told
-- Its own message is on its way, or that of a replay. {probe} stands in these: of a few events each is
-- looked up by the indexes, of very many everything that waits or is dead is read once.
(exists (select from outbox o where o.id = w.id {probe})
 or exists (
     select from outbox o
     where o.channel = 'webhooks' and o.dedup_key = 'replay:' || w.id::text {probe}
 ))

-- name: event_is_followed
-- A message that followed from it, however far down its story, is on its way.
exists (
    select from outbox o
    where o.correlation_id = w.id::text and o.correlation_id <> o.id::text {probe}
)

-- name: event_is_dead
-- A message of its story is dead.
exists (select from dead_letters d where d.correlation_id = w.id::text {probe})

-- name: event_is_given_up
-- An operator discarded a letter of its story, and nobody had it published anew since.
exists (
    select from audit_logs a
    where a.action = 'dead_letters.discard'
      and a.details #>> '{letter,correlation_id}' = w.id::text
      and not exists (
          select from audit_logs r
          where r.action = 'webhooks.replay' and r.details -> 'webhook_ids' ? w.id::text
            and r.recorded_at >= a.recorded_at
      )
)

-- name: one_of_many_is_given_up
-- The same, for very many.
w.id::text in (
    select a.details #>> '{letter,correlation_id}'
    from audit_logs a
    where a.action = 'dead_letters.discard'
      and not exists (
          select from audit_logs r
          where r.action = 'webhooks.replay'
            and r.details -> 'webhook_ids' ? (a.details #>> '{letter,correlation_id}')
            and r.recorded_at >= a.recorded_at
      )
)

-- name: among_waiting
-- Where to look for a status, put in place of {among}: few are waiting or dead among many events, so
-- these begin at the few. Among them are others; {has_status} leaves those out.
w.verdict = 'verified' and w.id = any(array(
    select id from outbox where channel = 'webhooks'
    union all
    select substring(
        correlation_id from '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
    )::uuid
    from outbox where correlation_id <> id::text
))

-- name: among_dead
-- The same for dead events.
w.verdict = 'verified' and w.id = any(array(
    select substring(
        correlation_id from '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
    )::uuid
    from dead_letters
))

-- name: among_given_up
-- The same for those that an operator gave up.
w.verdict = 'verified' and w.id = any(array(
    select substring(
        details #>> '{letter,correlation_id}'
        from '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
    )::uuid
    from audit_logs where action = 'dead_letters.discard'
))

-- name: among_verified
-- The same for all that was believed.
w.verdict = 'verified'

-- name: among_refused
-- The same for what was not.
w.verdict <> 'verified'

-- name: called
-- The condition of the id that the sender gave, put in place of {called}. One that is remembered is
-- found at once, whoever sent it; for any other all that is kept is read. Of one that was taken again
-- after it had been forgotten the later is found: what follows from both has the same ids.
w.event_id = %(event_id)s and w.id = any(array(
    with recursive senders as (
        select min(source) as source from webhook_events
        union all
        select (select min(e.source) from webhook_events e where e.source > s.source)
        from senders s where s.source is not null
    ), remembered as materialized (
        select e.webhook_id
        from senders s join webhook_events e on e.source = s.source and e.event_id = %(event_id)s
    )
    select webhook_id from remembered
    union all
    select l.id from webhook_logs l
    where l.event_id = %(event_id)s and not exists (select from remembered)
))

-- name: matching
-- The condition of a filter, put in place of {matching} below; what is null is not asked for.
(%(source)s::text is null or w.source = %(source)s)
and (%(event_type)s::text is null or w.event_type = %(event_type)s)
and (%(since)s::timestamptz is null or w.received_at >= %(since)s)
and (%(until)s::timestamptz is null or w.received_at < %(until)s)
and (%(text)s::bytea is null
     or position(%(text)s in w.body) > 0 or position(%(text)s in convert_to(w.query, 'UTF8')) > 0)
and (%(ids)s::uuid[] is null or w.id = any(%(ids)s))
and {called}
and {among}

-- name: has_status
-- The rest of it, put in place of {has_status}: last, since it costs most.
(%(statuses)s::text[] is null or {status} = any(%(statuses)s))

-- name: event_summary
-- What a list shows, put in place of {summary} below.
w.id::text, w.received_at, w.source, w.event_type, w.event_id, w.verdict, {status}, w.body_bytes

-- name: compile_nothing
-- Of a page PostgreSQL expects the cost of far more, and would take seconds to compile it.
set local jit = off;

-- name: list_events
-- Newest first, from the place where the page before ended. Ids follow the time, and of the two only
-- they have an index of their own.
select {summary}
from webhook_logs w
where {matching} and {has_status}
  and (%(before_id)s::uuid is null or w.id < %(before_id)s)
order by w.id desc
limit %(limit)s;

-- name: list_events_of_source
-- The same for one source, along its index.
select {summary}
from webhook_logs w
where {matching} and {has_status}
  and (%(before_at)s::timestamptz is null
       or (w.received_at, w.id) < (%(before_at)s, %(before_id)s::uuid))
order by w.received_at desc, w.id desc
limit %(limit)s;

-- name: count_events
-- The largest groups of events that match, each with how many match in all. The offset keeps the
-- status from being found out for every day and condition anew.
select source, event_type, status, count(*), (sum(count(*)) over ())::bigint
from (
    select w.source, w.event_type, {status_of_many} as status
    from webhook_logs w
    where {matching} and (%(after_id)s::uuid is null or w.id > %(after_id)s)
    offset 0
) as matched
where %(statuses)s::text[] is null or status = any(%(statuses)s)
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

-- name: given_up_letters
-- The letters of an event's story that operators discarded and that stayed so, oldest first.
select details #>> '{letter,id}', details #>> '{letter,channel}', details #>> '{letter,message_id}',
       details #>> '{letter,reason}', actor, recorded_at
from audit_logs a
where action = 'dead_letters.discard' and details #>> '{letter,correlation_id}' = %(id)s
  and not exists (
      select from audit_logs r
      where r.action = 'webhooks.replay' and r.details -> 'webhook_ids' ? %(id)s
        and r.recorded_at >= a.recorded_at
  )
order by recorded_at, id;

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
where {matching} and {has_status}
  and (%(after_id)s::uuid is null or w.id > %(after_id)s)
order by w.id
limit %(limit)s;

-- name: events_are_left
-- Whether any events come after those that were dealt with.
select exists (
    select from webhook_logs w
    where {matching} and {has_status} and (%(after_id)s::uuid is null or w.id > %(after_id)s)
);

-- name: missing_events
-- Which ids no event has.
select id
from unnest(%(ids)s::uuid[]) as asked (id)
where not exists (select from webhook_logs w where w.id = asked.id);

-- name: is_source_logged
-- Whether anything was ever received as of this source.
select exists (select from webhook_logs where source = %(source)s);
