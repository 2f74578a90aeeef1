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
