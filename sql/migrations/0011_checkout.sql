-- Orders, and what outside services report of their money, parcels and stock. Reports come late,
-- twice and in any order: of each thing the row keeps the greatest report, by a total order of
-- reports (in the queries), so that the order of arrival leaves no trace.

create table orders (
    id             uuid primary key,
    number         text not null unique check (number <> ''),
    -- No foreign key: an order made elsewhere may be of somebody who is not known here.
    user_id        uuid,
    amount_minor   bigint not null check (amount_minor >= 0),
    currency       char(3) not null check (currency ~ '^[A-Z]{3}$'),
    state          text not null default 'created'
        check (state in ('created', 'attempted', 'paid', 'partially_refunded', 'refunded')),
    is_confirmed   boolean not null,
    content_sha256 bytea not null check (octet_length(content_sha256) = 32),
    created_at     timestamptz not null,
    updated_at     timestamptz not null default now()
);
comment on column orders.id is 'The id of the message that told of it first.';
comment on column orders.state is
    'Follows from the payments and is written with them, under a lock on this row.';
comment on column orders.is_confirmed is
    'Told by who made the order, which outranks who asked for it at a checkout.';
comment on column orders.content_sha256 is 'Of the message that stands; decides between equals.';

create table order_items (
    order_id         uuid not null references orders,
    line             integer not null check (line > 0),
    sku              text not null check (sku <> ''),
    quantity         integer not null check (quantity > 0),
    unit_price_minor bigint not null check (unit_price_minor >= 0),
    primary key (order_id, line)
);

create table provider_orders (
    provider          text not null check (provider <> ''),
    provider_order_id text not null check (provider_order_id <> ''),
    order_id          uuid not null references orders,
    primary key (provider, provider_order_id)
);
comment on table provider_orders is
    'What payment providers call an order. It may have several such names: a shop whose request
     was not answered asks for another, and shoppers pay by either.';
create index provider_orders_order_id on provider_orders (order_id);

create table payments (
    id                    uuid primary key,
    provider              text not null check (provider <> ''),
    provider_payment_id   text not null check (provider_payment_id <> ''),
    order_id              uuid not null references orders,
    amount_minor          bigint not null check (amount_minor >= 0),
    currency              char(3) not null check (currency ~ '^[A-Z]{3}$'),
    reported_state        text not null
        check (reported_state in ('created', 'failed', 'authorized', 'captured')),
    -- More than the amount, if that is what the provider says.
    amount_refunded_minor bigint not null default 0 check (amount_refunded_minor >= 0),
    state                 text not null generated always as (
        case
            when reported_state <> 'captured' or amount_refunded_minor = 0 then reported_state
            when amount_refunded_minor < amount_minor then 'partially_refunded'
            else 'refunded'
        end
    ) stored,
    method                text not null,
    -- Why it failed.
    reason                text not null,
    -- Of the report that stands, and of all there were.
    state_occurred_at     timestamptz not null,
    first_occurred_at     timestamptz not null,
    last_occurred_at      timestamptz not null,
    updated_at            timestamptz not null default now(),
    unique (provider, provider_payment_id),
    check (state_occurred_at between first_occurred_at and last_occurred_at)
);
comment on column payments.id is 'The id of the message that told of it first.';
comment on column payments.amount_refunded_minor is
    'The sum of its processed refunds in its currency, written with them.';
create index payments_order_id on payments (order_id);

create table refunds (
    id                 uuid primary key,
    provider           text not null check (provider <> ''),
    provider_refund_id text not null check (provider_refund_id <> ''),
    payment_id         uuid not null references payments,
    amount_minor       bigint not null check (amount_minor >= 0),
    currency           char(3) not null check (currency ~ '^[A-Z]{3}$'),
    state              text not null check (state in ('pending', 'processed', 'failed')),
    state_occurred_at  timestamptz not null,
    updated_at         timestamptz not null default now(),
    unique (provider, provider_refund_id)
);
comment on column refunds.id is 'The id of the message that told of it first.';
create index refunds_payment_id on refunds (payment_id);

create table shipments (
    id                uuid primary key,
    provider          text not null check (provider <> ''),
    tracking_code     text not null check (tracking_code <> ''),
    -- A number and not a key: carriers may tell of a parcel before anybody tells of its order.
    order_number      text check (order_number <> ''),
    carrier           text not null,
    state             text not null check (state in (
        'unknown', 'pre_transit', 'in_transit', 'out_for_delivery', 'available_for_pickup',
        'failure', 'delivered', 'return_to_sender', 'returned', 'cancelled'
    )),
    -- As the carrier puts it.
    state_native      text not null,
    detail            text not null,
    state_occurred_at timestamptz not null,
    updated_at        timestamptz not null default now(),
    unique (provider, tracking_code)
);
comment on column shipments.id is 'The id of the message that told of it first.';
create index shipments_order_number on shipments (order_number);

create table products (
    sku         text primary key check (sku <> ''),
    stock       bigint not null check (stock >= 0),
    reported_at timestamptz not null
);
