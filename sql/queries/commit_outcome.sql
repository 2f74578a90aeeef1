-- Whether a transaction was committed, asked when the connection broke in its COMMIT.

-- name: begin_certain
-- Begins, and tells the transaction's id and since when this server has counted without a crash,
-- all in one round trip.
begin;
select pg_current_xact_id()::text, extract(epoch from stats_reset)::text from pg_stat_bgwriter;

-- name: transaction_status
-- A standby may not have heard of the transaction yet, so it does not know. A crash resets the
-- statistics; so does a failover, because a standby keeps its own.
select
  case when pg_is_in_recovery() then 'in progress' else pg_xact_status(%(id)s::text::xid8) end,
  (select extract(epoch from stats_reset)::text from pg_stat_bgwriter);

-- name: end_abandoned_transaction
-- Ends the session that still holds the transaction: nobody is left to talk to it. One that is
-- committing finishes first.
select pg_terminate_backend(pid)
from pg_stat_activity
where backend_xid = %(id)s::text::xid8::xid and usename = current_user and pid <> pg_backend_pid();
