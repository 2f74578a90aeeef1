-- What affiliate networks say of sales, and payment providers of money we sent. A report comes late,
-- doubled and out of order, so each is kept, and a row says what all of its reports say together:
-- the views define that, and the result is the same in whatever order they came.

-- One row a sale, lead or bonus. It is told by postbacks, which anybody who knows the address and
-- the secret can make up: a hint, on which no money moves until the network's own report agrees.
create table affiliate_transactions (
    id                uuid primary key,
    network           text not null check (network <> ''),
    account           text not null,
    native_id         text not null check (native_id <> ''),
    click_ref         text,
    external_click_id uuid,
    status            text not null check (
        status in ('pending', 'held', 'confirmed', 'payable', 'paid', 'rejected', 'unknown')
    ),
    -- In the network's own words.
    status_native     text not null,
    kind              text not null check (kind in ('sale', 'lead', 'bonus', 'other')),
    -- In major units, as the network wrote them; null is not said, which is not 0. The bounds keep
    -- out NaN, too, which is more than any number.
    commission        numeric check (abs(commission) < 1e15),
    sale_amount       numeric check (abs(sale_amount) < 1e15),
    currency          char(3) check (currency ~ '^[A-Z]{3}$'),
    program_id        text,
    order_id          text,
    clicked_at        timestamptz,
    occurred_at       timestamptz,
    reported_at       timestamptz not null,
    first_reported_at timestamptz not null,
    unique (network, account, native_id),
    constraint first_report_before_last check (first_reported_at <= reported_at)
);
comment on column affiliate_transactions.id is
    'The id of the message that told of it first, in the order in which they were taken in.';
comment on column affiliate_transactions.click_ref is
    'The sub-id that was in the link, as the network gave it back.';
comment on column affiliate_transactions.external_click_id is
    'The click in affiliate_clicks that click_ref names. Null until transactions are matched to
     clicks, which nothing does yet.';

-- Append only.
create table affiliate_transaction_reports (
    id             uuid primary key,
    network        text not null,
    account        text not null,
    native_id      text not null,
    click_ref      text,
    status         text not null,
    status_native  text not null,
    kind           text not null,
    commission     numeric,
    sale_amount    numeric,
    currency       char(3),
    program_id     text,
    order_id       text,
    clicked_at     timestamptz,
    occurred_at    timestamptz,
    reported_at    timestamptz not null,
    correlation_id text not null,
    recorded_at    timestamptz not null default now(),
    foreign key (network, account, native_id)
        references affiliate_transactions (network, account, native_id)
);
comment on column affiliate_transaction_reports.id is 'The id of the message that is this report.';
create index affiliate_transaction_reports_transaction
    on affiliate_transaction_reports (network, account, native_id);

-- The latest report counts; what it leaves out is as it was last said. `unknown` says nothing, so
-- it gives way to any other status. Amounts count in the currency that was named last.
create view affiliate_transactions_as_reported as
select network, account, native_id,
       (array_agg(click_ref order by age) filter (where click_ref is not null))[1] as click_ref,
       (array_agg(status order by status = 'unknown', age))[1] as status,
       (array_agg(status_native order by status = 'unknown', age))[1] as status_native,
       (array_agg(kind order by age))[1] as kind,
       (array_agg(commission order by age)
           filter (where commission is not null and in_last_currency))[1] as commission,
       (array_agg(sale_amount order by age)
           filter (where sale_amount is not null and in_last_currency))[1] as sale_amount,
       (array_agg(currency order by age) filter (where currency is not null))[1] as currency,
       (array_agg(program_id order by age) filter (where program_id is not null))[1] as program_id,
       (array_agg(order_id order by age) filter (where order_id is not null))[1] as order_id,
       (array_agg(clicked_at order by age) filter (where clicked_at is not null))[1] as clicked_at,
       (array_agg(occurred_at order by age)
           filter (where occurred_at is not null))[1] as occurred_at,
       max(reported_at) as reported_at,
       min(reported_at) as first_reported_at
from (
    select *,
           row_number() over (
               partition by network, account, native_id order by reported_at desc, id desc
           ) as age,
           currency is null or currency = first_value(currency) over (
               partition by network, account, native_id
               order by currency is null, reported_at desc, id desc
           ) as in_last_currency
    from affiliate_transaction_reports
) as reports
group by network, account, native_id;

-- One row for money that we sent to somebody. It moves to states of a higher rank only, as the view
-- below has them: money that was processed may still come back, and what came back stays so.
create table payouts (
    provider     text not null check (provider <> ''),
    payout_id    text not null check (payout_id <> ''),
    state        text not null check (
        state in ('pending', 'queued', 'scheduled', 'processing', 'rejected', 'cancelled',
                  'processed', 'failed', 'reversed')
    ),
    -- Ours, which travelled with it.
    reference_id text,
    amount_minor bigint not null check (amount_minor >= 0),
    currency     char(3) not null check (currency ~ '^[A-Z]{3}$'),
    -- The bank's number of the transfer.
    utr          text,
    reason       text not null,
    occurred_at  timestamptz not null,
    primary key (provider, payout_id)
);

-- Append only.
create table payout_reports (
    id             uuid primary key,
    provider       text not null,
    payout_id      text not null,
    state          text not null,
    reference_id   text,
    amount_minor   bigint not null,
    currency       char(3) not null,
    utr            text,
    reason         text not null,
    occurred_at    timestamptz not null,
    correlation_id text not null,
    recorded_at    timestamptz not null default now(),
    foreign key (provider, payout_id) references payouts
);
comment on column payout_reports.id is 'The id of the message that is this report.';
create index payout_reports_payout on payout_reports (provider, payout_id);

-- The report of the highest rank counts, among equals the latest. The ids it leaves out are as the
-- next one has them.
create view payouts_as_reported as
select provider, payout_id,
       (array_agg(state order by age))[1] as state,
       (array_agg(reference_id order by age)
           filter (where reference_id is not null))[1] as reference_id,
       (array_agg(amount_minor order by age))[1] as amount_minor,
       (array_agg(currency order by age))[1] as currency,
       (array_agg(utr order by age) filter (where utr is not null))[1] as utr,
       (array_agg(reason order by age))[1] as reason,
       (array_agg(occurred_at order by age))[1] as occurred_at
from (
    select *,
           row_number() over (
               partition by provider, payout_id
               order by case
                            when state in ('pending', 'queued', 'scheduled') then 0
                            when state = 'processing' then 1
                            when state in ('rejected', 'cancelled') then 2
                            when state = 'processed' then 3
                            when state = 'failed' then 4
                            when state = 'reversed' then 5
                        end desc, occurred_at desc, id desc
           ) as age
    from payout_reports
) as reports
group by provider, payout_id;

create function reports_are_append_only() returns trigger language plpgsql as $$
begin
    raise exception '% is append only', tg_table_name using errcode = 'restrict_violation';
end $$;
create trigger affiliate_transaction_reports_append_only
    before update or delete on affiliate_transaction_reports
    for each row execute function reports_are_append_only();
create trigger payout_reports_append_only before update or delete on payout_reports
    for each row execute function reports_are_append_only();
