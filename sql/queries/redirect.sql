-- name: horizon
-- The oldest transaction that may still change what this snapshot sees: whatever changes later
-- carries its number or a higher one in `changed_in`.
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint;

-- name: merchants_since
-- Merchants touched by a transaction that an earlier look may have missed.
select id::text, slug, name, tracking_template, fallback_url
from merchants where changed_in >= %(since)s::text::xid8;

-- name: offers_since
-- Offers touched by such a transaction, and all offers of merchants that were.
select id::text, merchant_id::text, url,
       coalesce(extract(epoch from starts_at), '-infinity')::float8,
       case when not active then '-infinity'::float8
            else coalesce(extract(epoch from expires_at), 'infinity')::float8 end
from offers
where changed_in >= %(since)s::text::xid8 or merchant_id = any(%(merchant_ids)s::uuid[]);

-- name: stats_totals
-- All clicks ever, by verdict.
select verdict, sum(clicks)::bigint from click_totals group by verdict;

-- name: stats_minutes
-- The last day's clicks by minute.
select extract(epoch from minute)::bigint, sum(clicks)::bigint
from click_minutes where minute >= %(since)s group by minute;

-- name: stats_top_merchants
-- Who gets the clicks, of all time.
select m.slug, m.name, sum(t.clicks)::bigint as clicks
from click_totals t join merchants m on m.id = t.merchant_id
group by m.slug, m.name order by clicks desc, m.slug limit 10;

-- name: stats_top_offers
-- What is being clicked, counted from the rows themselves.
select c.offer_id::text, o.title, m.slug, c.clicks
from (
    select offer_id, count(*) as clicks from affiliate_clicks
    where clicked_at >= %(since)s group by offer_id order by clicks desc, offer_id limit 10
) c
join offers o on o.id = c.offer_id join merchants m on m.id = o.merchant_id
order by c.clicks desc, c.offer_id;

-- name: audit_missing_clicks
-- Which of these click ids are nowhere.
select wanted.id from unnest(%(ids)s::text[]) as wanted (id)
where not exists (select from affiliate_clicks c where c.external_click_id = wanted.id::uuid)
  and not exists (select from dead_letters d where d.channel = 'clicks' and d.message_id = wanted.id);
