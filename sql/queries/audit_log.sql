-- name: record
-- Append one thing that was done.
insert into audit_logs (id, actor, action, subject, details)
values (%(id)s, %(actor)s, %(action)s, %(subject)s, %(details)s::jsonb);

-- name: lock_partitions
-- One daemon at a time makes partitions; the lock ends with the transaction.
select pg_advisory_xact_lock(hashtextextended('couponflow.audit_logs.partitions', 0));

-- name: has_partition
-- Whether a table is a partition of audit_logs.
select exists (
    select from pg_inherits i
    where i.inhparent = 'audit_logs'::regclass and i.inhrelid = to_regclass(%(name)s)
);

-- name: wait_briefly
-- Attaching a partition locks the default one, and all writers queue behind a lock that waits.
select set_config('lock_timeout', '2s', true);
