-- The orders that the events of one file of requests pay for: without them a payment would wait for
-- its order. :batch and :orders are put in by peers.py.

with made as (
    select gen_random_uuid() as id, ':batch' || lpad(n::text, 10, '0') as name
    from generate_series(0, :orders - 1) as n
), known as (
    insert into orders (id, number, amount_minor, currency, is_confirmed, content_sha256, created_at)
    select id, 'cf-' || name, 9900, 'INR', true, sha256(name::bytea), now() from made
    returning id
)
insert into provider_orders (provider, provider_order_id, order_id)
select 'razorpay', 'order_' || name, id from made;
