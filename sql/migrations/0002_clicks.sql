-- Clicks as they were made, partitioned by day (UTC), and the counters kept beside them.

create table affiliate_clicks (
    external_click_id uuid not null,
    merchant_id       uuid not null,
    offer_id          uuid not null,
    user_id           uuid not null,
    clicked_at        timestamptz not null,
    ip                inet,
    user_agent        text not null,
    referer           text not null,
    verdict           text not null check (verdict in ('human', 'bot', 'prefetch', 'duplicate')),
    -- Click ids carry their own time, so the two always go together and a replay conflicts.
    primary key (external_click_id, clicked_at)
) partition by range (clicked_at);

comment on table affiliate_clicks is
    'One row a click, whatever its verdict. Foreign keys to offers and merchants would cost a
     trigger and a row lock a click; the writer checks them in a batch, the catalogue refuses
     deletes, and `couponflow audit` proves the result.';

-- Counted in the transaction that stores the clicks, so they cannot disagree with the rows.
create table click_minutes (
    minute  timestamptz not null check (date_trunc('minute', minute, 'UTC') = minute),
    verdict text not null,
    clicks  bigint not null check (clicks > 0),
    primary key (minute, verdict)
);

create table click_totals (
    merchant_id uuid not null references merchants,
    verdict     text not null,
    clicks      bigint not null check (clicks > 0),
    primary key (merchant_id, verdict)
);
