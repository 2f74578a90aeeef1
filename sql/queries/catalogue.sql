-- Imports write into a temporary table with COPY and from there in one statement, in the order of
-- the key, so that two writers meet each row in the same order and cannot deadlock.

-- name: settle_merchants
-- After an import: fresh statistics, and a visibility map for index-only lookups.
vacuum (analyze) merchants;

-- name: settle_offers
-- The same for offers.
vacuum (analyze) offers;

-- name: settle_users
-- The same for users.
vacuum (analyze) users;

-- name: lift_statement_timeout
-- A million rows may take longer than any single statement of the daemon should.
set local statement_timeout = 0;

-- name: forbid_changes
-- The proof of a dry run: only temporary tables can be written from here on.
set transaction read only;

-- name: try_import_lock
-- One import of a kind at a time in the whole installation; given back with the transaction.
select pg_try_advisory_xact_lock(hashtextextended('couponflow import ' || %(kind)s::text, 0));

-- name: merchant_ids
-- Every merchant's slug and id.
select slug, id::text from merchants;

-- name: email_owners
-- Each of these addresses as the unique index sees it, and the user it belongs to, if any.
select given.email, lower(given.email), users.id::text
from unnest(%(emails)s::text[]) as given (email)
left join users on lower(users.email) = lower(given.email);

-- name: stage_merchants
-- Merchants of a file that are all right by themselves.
create temporary table staged_merchants (
    id                uuid not null,
    slug              text not null,
    name              text not null,
    network           text not null,
    tracking_template text not null,
    fallback_url      text,
    cashback_percent  numeric(5, 2) not null
) on commit drop;

-- name: copy_merchants
-- Add to the staged merchants.
copy staged_merchants (id, slug, name, network, tracking_template, fallback_url, cashback_percent)
from stdin;

-- name: compare_merchants
-- What the upsert would do: how many it would insert, how many update.
select count(*) filter (where stored.slug is null),
       count(*) filter (where stored.slug is not null
           and (stored.name, stored.network, stored.tracking_template, stored.fallback_url,
                stored.cashback_percent)
               is distinct from (staged.name, staged.network, staged.tracking_template,
                                 staged.fallback_url, staged.cashback_percent))
from staged_merchants as staged
left join merchants as stored on stored.slug = staged.slug;

-- name: upsert_merchants
-- Insert new merchants, update those that differ (a merchant keeps its id), and count both.
with written as (
    insert into merchants as stored
        (id, slug, name, network, tracking_template, fallback_url, cashback_percent)
    select id, slug, name, network, tracking_template, fallback_url, cashback_percent
    from staged_merchants
    order by slug
    on conflict (slug) do update set
        name = excluded.name,
        network = excluded.network,
        tracking_template = excluded.tracking_template,
        fallback_url = excluded.fallback_url,
        cashback_percent = excluded.cashback_percent
    where (stored.name, stored.network, stored.tracking_template, stored.fallback_url,
           stored.cashback_percent)
          is distinct from (excluded.name, excluded.network, excluded.tracking_template,
                            excluded.fallback_url, excluded.cashback_percent)
    -- A row that was there before carries the lock of its update.
    returning xmax = 0 as inserted
)
select count(*) filter (where inserted), count(*) filter (where not inserted) from written;

-- name: stage_offers
-- Offers of a file that are all right by themselves, with their merchant's id.
create temporary table staged_offers (
    id          uuid not null,
    merchant_id uuid not null,
    title       text not null,
    url         text not null,
    starts_at   timestamptz,
    expires_at  timestamptz,
    active      boolean not null
) on commit drop;

-- name: copy_offers
-- Add to the staged offers.
copy staged_offers (id, merchant_id, title, url, starts_at, expires_at, active) from stdin;

-- name: compare_offers
-- What the upsert would do: how many it would insert, how many update.
select count(*) filter (where stored.id is null),
       count(*) filter (where stored.id is not null
           and (stored.merchant_id, stored.title, stored.url, stored.starts_at, stored.expires_at,
                stored.active)
               is distinct from (staged.merchant_id, staged.title, staged.url, staged.starts_at,
                                 staged.expires_at, staged.active))
from staged_offers as staged
left join offers as stored on stored.id = staged.id;

-- name: upsert_offers
-- Insert new offers, update those that differ, and count both.
with written as (
    insert into offers as stored (id, merchant_id, title, url, starts_at, expires_at, active)
    select id, merchant_id, title, url, starts_at, expires_at, active
    from staged_offers
    order by id
    on conflict (id) do update set
        merchant_id = excluded.merchant_id,
        title = excluded.title,
        url = excluded.url,
        starts_at = excluded.starts_at,
        expires_at = excluded.expires_at,
        active = excluded.active
    where (stored.merchant_id, stored.title, stored.url, stored.starts_at, stored.expires_at,
           stored.active)
          is distinct from (excluded.merchant_id, excluded.title, excluded.url,
                            excluded.starts_at, excluded.expires_at, excluded.active)
    -- A row that was there before carries the lock of its update.
    returning xmax = 0 as inserted
)
select count(*) filter (where inserted), count(*) filter (where not inserted) from written;

-- name: stage_users
-- Users of a file that are all right by themselves.
create temporary table staged_users (
    id     uuid not null,
    email  text,
    mobile text,
    name   text
) on commit drop;

-- name: copy_users
-- Add to the staged users.
copy staged_users (id, email, mobile, name) from stdin;

-- name: compare_users
-- What the upsert would do: how many it would insert, how many update.
select count(*) filter (where stored.id is null),
       count(*) filter (where stored.id is not null
           and (stored.email, stored.mobile, stored.name)
               is distinct from (staged.email, staged.mobile, staged.name))
from staged_users as staged
left join users as stored on stored.id = staged.id;

-- name: upsert_users
-- Insert new users, update those that differ, and count both.
with written as (
    insert into users as stored (id, email, mobile, name)
    select id, email, mobile, name
    from staged_users
    order by id
    on conflict (id) do update set
        email = excluded.email,
        mobile = excluded.mobile,
        name = excluded.name
    where (stored.email, stored.mobile, stored.name)
          is distinct from (excluded.email, excluded.mobile, excluded.name)
    -- A row that was there before carries the lock of its update.
    returning xmax = 0 as inserted
)
select count(*) filter (where inserted), count(*) filter (where not inserted) from written;
