-- name: register
-- Say that a worker begins, with its first lease.
insert into workers (id, name, roles, version, lease_until)
values (%(id)s, %(name)s, %(roles)s, %(version)s, now() + %(lease_seconds)s * interval '1 second');

-- name: renew
-- Renew a lease that nobody has ended; nothing is returned for one that somebody has.
update workers
set seen_at = now(), lease_until = now() + %(lease_seconds)s * interval '1 second',
    jobs_done = %(jobs_done)s, jobs_per_minute = %(jobs_per_minute)s
where id = %(id)s and expired_at is null
returning id::text;

-- name: expire_silent
-- End the leases of workers that have let them run out. Nobody waits for a rival that fell asleep
-- while it did the same.
update workers set expired_at = now()
where id = any(array(
    select id from workers
    where expired_at is null and lease_until < now() and id <> %(id)s
    for update skip locked
))
returning name;

-- name: expire
-- End the leases of workers that are known to be dead.
update workers set expired_at = now() where id = any(%(ids)s::uuid[]) and expired_at is null;

-- name: leave
-- Forget workers that end in order, or whose place another has taken.
delete from workers where id = any(%(ids)s::uuid[]);

-- name: forget_expired
-- Forget workers that vanished long ago.
delete from workers
where id = any(array(
    select id from workers where expired_at < now() - interval '1 day' for update skip locked
));

-- name: list_missing
-- Workers that vanished, unseen for long enough to be reported.
select id::text, name, roles, extract(epoch from now() - seen_at)::float8 from workers
where seen_at < now() - %(missing_seconds)s * interval '1 second' order by seen_at;
