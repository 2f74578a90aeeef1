-- name: lock_partitions
-- One daemon at a time makes partitions of a table; the lock ends with the transaction.
select pg_advisory_xact_lock(hashtextextended('couponflow.partitions.' || %(table)s, 0));

-- name: has_partition
-- Whether a table is a partition of another.
select exists (
    select from pg_inherits i
    where i.inhparent = to_regclass(%(table)s) and i.inhrelid = to_regclass(%(name)s)
);

-- name: partitions
-- The partitions of a table.
select c.relname::text
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = to_regclass(%(table)s)
order by c.relname;

-- name: kept_from
-- Before when a table may be dropped. What is dropped is gone, so a clock that was set ahead must not
-- decide alone: it is old enough by the daemon's clock and by PostgreSQL's.
select least(
    least(to_timestamp(%(now)s), now()) - %(days)s * interval '1 day', %(needed_from)s::timestamptz
);

-- name: wait_briefly
-- Attaching a partition locks the default one, dropping one locks the table, and all writers queue
-- behind a lock that waits.
select set_config('lock_timeout', '2s', true);
