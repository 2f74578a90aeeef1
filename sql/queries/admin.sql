-- name: lock_idempotency_key
-- Let requests with one idempotency key through one at a time, until the transaction ends.
select pg_advisory_xact_lock(%(key)s);

-- name: find_submission
-- What became of a message whose id lies between two; nothing if none was ever taken in. One
-- statement, so that a message that moves on meanwhile is seen in one place or the other.
select id::text, nullif(correlation_id, '') from outbox
where id between %(low)s::uuid and %(high)s::uuid
union all
select message_id::text, null from processed_messages
where message_id between %(low)s::uuid and %(high)s::uuid
union all
select message_id, nullif(correlation_id, '') from dead_letters
where channel = %(channel)s and message_id between %(low)s::text and %(high)s::text
limit 1;

-- name: find_duplicate
-- The message that a dedup_key stands for while it is not done.
select id::text, correlation_id from outbox
where channel = %(channel)s and dedup_key = %(dedup_key)s;

-- name: list_workers
-- Workers that live, and those that vanished, the ones last heard of first.
select id::text, name, roles, version, started_at, seen_at,
       greatest(0, extract(epoch from now() - seen_at))::float8,
       jobs_done, jobs_per_minute,
       case
           when seen_at < now() - %(missing_seconds)s * interval '1 second' then 'missing'
           when expired_at is not null or lease_until < now() then 'late'
           else 'alive'
       end
from workers
order by seen_at desc, id;
