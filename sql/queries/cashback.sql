-- name: lock_transactions
-- Lock transactions until the commit, in one order everywhere, made if they are not there: whoever
-- reports on the same one waits here, and then sees what we wrote. What they say is set from their
-- history.
insert into affiliate_transactions (id, network, account, native_id, status, status_native, kind,
                                    reported_at, first_reported_at)
select distinct on (network, account, native_id) message_id, network, account, native_id, status,
       status_native, kind, to_timestamp(reported_at), to_timestamp(reported_at)
from json_to_recordset(%(reports)s::json) as g (
    message_id uuid, network text, account text, native_id text, status text, status_native text,
    kind text, reported_at float8, place integer
)
order by network, account, native_id, place
on conflict (network, account, native_id) do update set network = excluded.network;

-- name: insert_transaction_reports
-- Keep what networks said; once for each message.
insert into affiliate_transaction_reports (
    id, network, account, native_id, click_ref, status, status_native, kind, commission,
    sale_amount, currency, program_id, order_id, clicked_at, occurred_at, reported_at,
    correlation_id
)
select message_id, network, account, native_id, click_ref, status, status_native, kind, commission,
       sale_amount, currency, program_id, order_id, to_timestamp(clicked_at),
       to_timestamp(occurred_at), to_timestamp(reported_at), correlation_id
from json_to_recordset(%(reports)s::json) as g (
    message_id uuid, network text, account text, native_id text, click_ref text, status text,
    status_native text, kind text, commission numeric, sale_amount numeric, currency text,
    program_id text, order_id text, clicked_at float8, occurred_at float8, reported_at float8,
    correlation_id text
)
on conflict (id) do nothing;

-- name: update_transactions
-- Let transactions say what their histories say. With the limit, of which there is one row at most,
-- only their own histories are read; without it the view would be made of all there is.
update affiliate_transactions t
set click_ref = r.click_ref, status = r.status, status_native = r.status_native, kind = r.kind,
    commission = r.commission, sale_amount = r.sale_amount, currency = r.currency,
    program_id = r.program_id, order_id = r.order_id, clicked_at = r.clicked_at,
    occurred_at = r.occurred_at, reported_at = r.reported_at,
    first_reported_at = r.first_reported_at
from (
    select distinct network, account, native_id
    from json_to_recordset(%(reports)s::json) as g (network text, account text, native_id text)
) as k
cross join lateral (
    select v.* from affiliate_transactions_as_reported v
    where (v.network, v.account, v.native_id) = (k.network, k.account, k.native_id)
    limit 1
) as r
where (t.network, t.account, t.native_id) = (k.network, k.account, k.native_id);

-- name: lock_payouts
-- Lock payouts until the commit, as `lock_transactions` does transactions.
insert into payouts (provider, payout_id, state, amount_minor, currency, reason, occurred_at)
select distinct on (provider, payout_id) provider, payout_id, state, amount_minor, currency, reason,
       to_timestamp(occurred_at)
from json_to_recordset(%(reports)s::json) as g (
    provider text, payout_id text, state text, amount_minor bigint, currency text, reason text,
    occurred_at float8
)
order by provider, payout_id
on conflict (provider, payout_id) do update set provider = excluded.provider;

-- name: insert_payout_reports
-- Keep what providers said; once for each message.
insert into payout_reports (id, provider, payout_id, state, reference_id, amount_minor, currency,
                            utr, reason, occurred_at, correlation_id)
select message_id, provider, payout_id, state, reference_id, amount_minor, currency, utr, reason,
       to_timestamp(occurred_at), correlation_id
from json_to_recordset(%(reports)s::json) as g (
    message_id uuid, provider text, payout_id text, state text, reference_id text,
    amount_minor bigint, currency text, utr text, reason text, occurred_at float8,
    correlation_id text
)
on conflict (id) do nothing;

-- name: update_payouts
-- Let payouts say what their histories say, as `update_transactions` does.
update payouts p
set state = r.state, reference_id = r.reference_id, amount_minor = r.amount_minor,
    currency = r.currency, utr = r.utr, reason = r.reason, occurred_at = r.occurred_at
from (
    select distinct provider, payout_id
    from json_to_recordset(%(reports)s::json) as g (provider text, payout_id text)
) as k
cross join lateral (
    select v.* from payouts_as_reported v
    where (v.provider, v.payout_id) = (k.provider, k.payout_id)
    limit 1
) as r
where (p.provider, p.payout_id) = (k.provider, k.payout_id);

-- name: audit_transactions_against_reports
-- Transactions that say something else than their history, or have none.
select t.network, t.account, t.native_id, t.status, r.status as reported_status
from affiliate_transactions t
left join affiliate_transactions_as_reported r using (network, account, native_id)
where (t.click_ref, t.status, t.status_native, t.kind, t.commission, t.sale_amount, t.currency,
       t.program_id, t.order_id, t.clicked_at, t.occurred_at, t.reported_at, t.first_reported_at)
      is distinct from
      (r.click_ref, r.status, r.status_native, r.kind, r.commission, r.sale_amount, r.currency,
       r.program_id, r.order_id, r.clicked_at, r.occurred_at, r.reported_at, r.first_reported_at)
limit 20;

-- name: audit_payouts_against_reports
-- Payouts that say something else than their history, or have none.
select p.provider, p.payout_id, p.state, r.state as reported_state
from payouts p left join payouts_as_reported r using (provider, payout_id)
where (p.state, p.reference_id, p.amount_minor, p.currency, p.utr, p.reason, p.occurred_at)
      is distinct from
      (r.state, r.reference_id, r.amount_minor, r.currency, r.utr, r.reason, r.occurred_at)
limit 20;

-- name: audit_done_without_report
-- Messages recorded as done of which nothing was kept.
select p.message_id::text
from processed_messages p
where p.channel = 'cashback' and p.outcome = 'done'
  and not exists (select from affiliate_transaction_reports r where r.id = p.message_id)
  and not exists (select from payout_reports r where r.id = p.message_id)
limit 20;
