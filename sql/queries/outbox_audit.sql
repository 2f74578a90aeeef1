-- name: in_two_places
-- Messages that are on their way, done or dead, and another of these as well. Ill-formed entries of
-- two streams may have the same id without being the same.
select message_id, string_agg(distinct place, ' and ' order by place) as places
from (
    select id::text as message_id, 'outbox' as place from outbox
    union all
    select message_id::text, 'processed_messages' from processed_messages
    union all
    select message_id, 'dead_letters' from dead_letters
) as everywhere
group by message_id having count(distinct place) > 1
limit 20;

-- name: ownerless
-- Messages owned by a worker that is unknown, or whose lease ended so long ago that any other
-- worker should have freed them. Without any living worker nobody frees them, and none is at fault.
select o.id::text, o.channel, coalesce(w.name, o.owner::text) as owner, w.lease_until::text
from outbox o left join workers w on w.id = o.owner
where o.owner is not null
  and (w.id is null or w.lease_until < now() - interval '5 minutes')
  and exists (
      select from workers alive
      where alive.expired_at is null and alive.lease_until > now()
        and alive.started_at < now() - interval '5 minutes'
  )
limit 20;

-- name: vanished
-- Messages that somebody pushed or replayed and that are nowhere. Of audit_logs only the partitions
-- of the last days are read, once, and only these few actions are unpacked. Against a million rows:
-- the outbox and what is done are found by their keys or hashed, and except never compares each with
-- each, whatever the planner believes of the size of an array. One statement, so that a message on
-- its way from one place to another is seen in one of them.
with recent as materialized (
    select recorded_at, actor, action, details
    from audit_logs
    where recorded_at > now() - %(hours)s * interval '1 hour'
      and action in (
          'channel.push', 'dead_letters.replay', 'dead_letters.discard', 'webhooks.replay'
      )
), recorded as materialized (
    select named.message_id::uuid as message_id, recent.recorded_at, recent.actor, recent.action
    from recent
    cross join lateral (
        select details ->> 'message_id'
        union all
        select jsonb_array_elements_text(details -> 'message_ids')
        union all
        select letter ->> 'outbox_id' from jsonb_array_elements(details -> 'letters') as letter
    ) as named (message_id)
    where recent.action <> 'dead_letters.discard' and named.message_id is not null
), lost as materialized (
    (
        select message_id::text from recorded
        where not exists (select from outbox o where o.id = recorded.message_id)
          and not exists (
              select from processed_messages p where p.message_id = recorded.message_id
          )
    )
    except
    (
        select message_id from dead_letters
        union all
        select details #>> '{letter,message_id}' from recent where action = 'dead_letters.discard'
    )
    limit 20
)
select distinct on (recorded.message_id)
       recorded.message_id::text, recorded.action, recorded.actor, recorded.recorded_at::text
from recorded join lost on lost.message_id = recorded.message_id::text
order by recorded.message_id, recorded.recorded_at desc;
