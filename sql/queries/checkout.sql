-- name: put_order
-- Make an order, or let what is told of it now replace what stands: who made it outranks who asked
-- for it, then the earlier one stands. Gives no row where nothing is replaced.
insert into orders as o (id, number, user_id, amount_minor, currency, is_confirmed, content_sha256,
                         created_at)
values (%(id)s, %(number)s, %(user_id)s, %(amount_minor)s, %(currency)s, %(is_confirmed)s,
        %(content_sha256)s, to_timestamp(%(told_at)s))
on conflict (number) do update
set user_id = excluded.user_id, amount_minor = excluded.amount_minor, currency = excluded.currency,
    is_confirmed = excluded.is_confirmed, content_sha256 = excluded.content_sha256,
    created_at = excluded.created_at, updated_at = now()
where (excluded.is_confirmed, o.created_at, excluded.content_sha256)
    > (o.is_confirmed, excluded.created_at, o.content_sha256)
returning id;

-- name: delete_items
-- Forget the lines of an order, to be told anew.
delete from order_items where order_id = %(order_id)s;

-- name: insert_items
-- Number the lines of an order as they were told.
insert into order_items (order_id, line, sku, quantity, unit_price_minor)
select %(order_id)s, line, sku, quantity, unit_price_minor
from unnest(%(skus)s::text[], %(quantities)s::integer[], %(unit_prices_minor)s::bigint[])
     with ordinality as item (sku, quantity, unit_price_minor, line);

-- name: lock_orders
-- For each of several reports, by its place, the orders that have the number it tells, or the
-- name at its provider; all kept from other writers, in one order everywhere.
select g.place, o.id::text
from unnest(%(order_numbers)s::text[], %(providers)s::text[], %(provider_order_ids)s::text[])
     with ordinality as g (number, provider, provider_order_id, place)
cross join lateral (
    select id from orders where number = g.number
    union
    select order_id from provider_orders
    where provider = g.provider and provider_order_id = g.provider_order_id
) as named
join orders o on o.id = named.id
order by o.id
for no key update of o;

-- name: name_orders
-- Remember what providers call orders.
insert into provider_orders (provider, provider_order_id, order_id)
select * from unnest(%(providers)s::text[], %(provider_order_ids)s::text[], %(order_ids)s::uuid[])
on conflict do nothing;

-- name: refresh_orders
-- Derive the states of orders from their payments, of which those count that are captured in the
-- order's currency. Money that came twice and went back once leaves the order paid.
with counted as (
    select o.id, o.amount_minor as due, count(p.id) as payments,
           sum(p.amount_minor) filter (where is_counted) as captured,
           sum(least(p.amount_refunded_minor, p.amount_minor)) filter (where is_counted) as refunded
    from orders o
    left join payments p on p.order_id = o.id
    cross join lateral (
        select p.reported_state = 'captured' and p.currency = o.currency as is_counted
    ) c
    where o.id = any(%(order_ids)s::uuid[])
    group by o.id
), derived as (
    select id, case
        when payments = 0 then 'created'
        when captured is null or captured < due then 'attempted'
        when refunded = 0 then 'paid'
        when refunded >= captured then 'refunded'
        when captured - refunded >= due then 'paid'
        else 'partially_refunded'
    end as state
    from counted
)
update orders o set state = derived.state, updated_at = now()
from derived
where o.id = derived.id and o.state <> derived.state;

-- name: put_payments
-- Keep what is reported of payments, each of which is there once, if it outranks what stands: the
-- later state, then the later moment, then the rest of the report. Gives no row where the payment
-- is of another order.
insert into payments as p (id, provider, provider_payment_id, order_id, reported_state,
                           state_occurred_at, amount_minor, currency, method, reason,
                           first_occurred_at, last_occurred_at)
select id, provider, payment_id, order_id, state, at, amount_minor, currency, method, reason, at, at
from json_to_recordset(%(reports)s::json) as g (
    id uuid, provider text, payment_id text, order_id uuid, state text, amount_minor bigint,
    currency text, method text, reason text, occurred_at float8
), to_timestamp(occurred_at) as at
order by order_id, provider, payment_id
on conflict (provider, provider_payment_id) do update
set (reported_state, state_occurred_at, amount_minor, currency, method, reason) = (
        select report.* from (values
            (p.reported_state, p.state_occurred_at, p.amount_minor, p.currency, p.method, p.reason),
            (excluded.reported_state, excluded.state_occurred_at, excluded.amount_minor,
             excluded.currency, excluded.method, excluded.reason)
        ) as report (state)
        order by array_position('{created,failed,authorized,captured}'::text[], state) desc,
                 report desc
        limit 1
    ),
    first_occurred_at = least(p.first_occurred_at, excluded.first_occurred_at),
    last_occurred_at = greatest(p.last_occurred_at, excluded.last_occurred_at),
    updated_at = now()
where p.order_id = excluded.order_id
returning provider, provider_payment_id, id::text;

-- name: lock_payment
-- A payment and its order, which is kept from other writers, and its payments with it.
select p.id::text, o.id::text
from payments p join orders o on o.id = p.order_id
where p.provider = %(provider)s and p.provider_payment_id = %(payment_id)s
for no key update of o;

-- name: put_refund
-- Keep what is reported of a refund if it outranks what stands: the later state, then the later
-- moment, then the rest of the report. Gives no row where the refund is of another payment.
insert into refunds as r (id, provider, provider_refund_id, payment_id, state, state_occurred_at,
                          amount_minor, currency)
values (%(id)s, %(provider)s, %(refund_id)s, %(of_payment)s, %(state)s,
        to_timestamp(%(occurred_at)s), %(amount_minor)s, %(currency)s)
on conflict (provider, provider_refund_id) do update
set (state, state_occurred_at, amount_minor, currency) = (
        select report.* from (values
            (r.state, r.state_occurred_at, r.amount_minor, r.currency),
            (excluded.state, excluded.state_occurred_at, excluded.amount_minor, excluded.currency)
        ) as report (state)
        order by array_position('{pending,processed,failed}'::text[], state) desc, report desc
        limit 1
    ),
    updated_at = now()
where r.payment_id = excluded.payment_id
returning id;

-- name: refresh_payments
-- Add up what of payments was sent back.
update payments p set amount_refunded_minor = refunded.amount_minor, updated_at = now()
from (
    select p.id, coalesce(sum(r.amount_minor), 0) as amount_minor
    from payments p
    left join refunds r
        on r.payment_id = p.id and r.currency = p.currency and r.state = 'processed'
    where p.id = any(%(payment_ids)s::uuid[])
    group by p.id
) refunded
where p.id = refunded.id and p.amount_refunded_minor <> refunded.amount_minor;

-- name: put_shipment
-- Keep what is reported of a parcel if it outranks what stands. A parcel that is done with stays
-- so, and one that moves does not go back to its label; within a rank, where parcels do go back and
-- forth, the latest moment tells where it is. An order number or a carrier, once told, stays.
insert into shipments as s (id, provider, tracking_code, order_number, carrier, state,
                            state_occurred_at, state_native, detail)
values (%(id)s, %(provider)s, %(tracking_code)s, %(order_number)s, %(carrier)s, %(state)s,
        to_timestamp(%(occurred_at)s), %(state_native)s, %(detail)s)
on conflict (provider, tracking_code) do update
set (state_occurred_at, state, state_native, detail) = (
        select report.* from (values
            (s.state_occurred_at, s.state, s.state_native, s.detail),
            (excluded.state_occurred_at, excluded.state, excluded.state_native, excluded.detail)
        ) as report (occurred_at, state)
        order by case
                when state in ('delivered', 'returned', 'cancelled') then 3
                when state = 'pre_transit' then 1
                when state = 'unknown' then 0
                else 2
            end desc,
            report desc
        limit 1
    ),
    order_number = greatest(s.order_number, excluded.order_number),
    carrier = greatest(s.carrier, excluded.carrier),
    updated_at = now();

-- name: put_stock
-- Keep the latest count of a product; of two at the same moment the lower, which cannot oversell.
insert into products as p (sku, stock, reported_at)
values (%(sku)s, %(quantity)s, to_timestamp(%(reported_at)s))
on conflict (sku) do update set stock = excluded.stock, reported_at = excluded.reported_at
where (excluded.reported_at, p.stock) > (p.reported_at, excluded.stock);

-- name: audit_order_states
-- Orders whose state their payments contradict.
select o.number, o.state, o.amount_minor, c.captured, c.refunded
from orders o
cross join lateral (
    select count(*) as payments, coalesce(sum(p.amount_minor), 0) as captured,
           coalesce(sum(least(p.amount_minor, p.amount_refunded_minor)), 0) as refunded
    from payments p
    where p.order_id = o.id and p.reported_state = 'captured' and p.currency = o.currency
) c
cross join lateral (
    select c.payments > 0 and c.captured >= o.amount_minor as is_paid,
           c.refunded > 0 and c.refunded >= c.captured as is_refunded,
           c.refunded > 0 and c.captured - c.refunded < o.amount_minor as is_short
) m
where (o.state = 'created') = exists (select from payments p where p.order_id = o.id)
   or (o.state in ('paid', 'partially_refunded', 'refunded')) <> m.is_paid
   or (o.state = 'refunded') <> (m.is_paid and m.is_refunded)
   or (o.state = 'partially_refunded') <> (m.is_paid and m.is_short and not m.is_refunded)
order by 1 limit 20;

-- name: audit_refunds
-- Payments whose refunds add up to something else than they say.
select p.provider, p.provider_payment_id, p.amount_refunded_minor, r.refunded_minor
from payments p
cross join lateral (
    select coalesce(sum(r.amount_minor), 0) as refunded_minor
    from refunds r
    where r.payment_id = p.id and r.currency = p.currency and r.state = 'processed'
) r
where p.amount_refunded_minor <> r.refunded_minor
order by 1, 2 limit 20;
