-- name: every_control
-- What operators have said of channels.
select channel, paused, rate_per_second, concurrency from channel_controls;

-- name: lock_control
-- What was said of a channel until now, held until the end of the transaction; made when missing.
insert into channel_controls (channel, changed_by) values (%(channel)s, %(actor)s)
on conflict (channel) do update set channel = excluded.channel
returning paused, rate_per_second, concurrency;

-- name: change_control
-- Say something else of a channel that is held by lock_control.
update channel_controls
set paused = %(paused)s, rate_per_second = %(rate_per_second)s, concurrency = %(concurrency)s,
    changed_by = %(actor)s, changed_at = now()
where channel = %(channel)s;
