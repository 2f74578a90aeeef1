-- The tables of the two Bun peers: the lean schema somebody would write for this flow alone, with
-- the columns couponflow stores a click in, no triggers, no partitions and one index.

create table offers (
    id                uuid primary key,
    merchant_id       uuid not null,
    merchant_slug     text not null,
    tracking_template text not null,
    url               text not null,
    active            boolean not null
);

create table clicks (
    id          uuid primary key,
    merchant_id uuid not null,
    offer_id    uuid not null,
    user_id     uuid not null,
    clicked_at  timestamptz not null,
    ip          inet,
    user_agent  text not null,
    referer     text not null
);
