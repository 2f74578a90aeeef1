-- name: known_offers
-- Which of these offers exist, and whose they are.
select id::text, merchant_id::text from offers where id = any(%(offer_ids)s::uuid[]);

-- name: copy_clicks
-- Clicks that are thought to be new, straight into their partitions.
copy affiliate_clicks (
    external_click_id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer, verdict
) from stdin;

-- name: count_clicks
-- Count what has just been stored. The order by keeps two writers from locking each other's
-- counters crosswise.
with counted as (
    select to_timestamp(minute) as minute, merchant_id, verdict, clicks
    from unnest(%(minutes)s::bigint[], %(merchant_ids)s::uuid[], %(verdicts)s::text[],
                %(clicks)s::bigint[]) as c (minute, merchant_id, verdict, clicks)
), by_minute as (
    insert into click_minutes (minute, verdict, clicks)
    select minute, verdict, sum(clicks) from counted group by 1, 2 order by 1, 2
    on conflict (minute, verdict) do update set clicks = click_minutes.clicks + excluded.clicks
)
insert into click_totals (merchant_id, verdict, clicks)
select merchant_id, verdict, sum(clicks) from counted group by 1, 2 order by 1, 2
on conflict (merchant_id, verdict) do update set clicks = click_totals.clicks + excluded.clicks;

-- name: create_staging
-- Where a batch lands in which some clicks are stored already; private to the connection.
create temporary table if not exists click_staging (like affiliate_clicks) on commit delete rows;

-- name: copy_to_staging
copy click_staging (
    external_click_id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer, verdict
) from stdin;

-- name: take_from_staging
-- Store what is new, and say what of it is to be counted.
insert into affiliate_clicks
select * from click_staging
on conflict do nothing
returning extract(epoch from date_trunc('minute', clicked_at, 'UTC'))::bigint,
          merchant_id::text, verdict;

-- name: partition_days
-- The days that have a partition, as text.
select to_char(
    substring(pg_get_expr(c.relpartbound, c.oid) from '''(.*?)''')::timestamptz at time zone 'UTC',
    'YYYY-MM-DD'
)
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'affiliate_clicks'::regclass;

-- name: audit_counters_against_rows
-- Minutes whose counters differ from the rows of that minute.
select coalesce(r.minute, m.minute) as minute, coalesce(r.verdict, m.verdict) as verdict,
       coalesce(r.clicks, 0) as rows_clicks, coalesce(m.clicks, 0) as counted_clicks
from (
    select date_trunc('minute', clicked_at, 'UTC') as minute, verdict, count(*) as clicks
    from affiliate_clicks group by 1, 2
) r
full join click_minutes m using (minute, verdict)
where r.clicks is distinct from m.clicks
order by 1, 2 limit 20;

-- name: audit_totals_against_rows
-- Merchants whose totals differ from their rows.
select coalesce(r.merchant_id, t.merchant_id) as merchant_id,
       coalesce(r.verdict, t.verdict) as verdict,
       coalesce(r.clicks, 0) as rows_clicks, coalesce(t.clicks, 0) as counted_clicks
from (
    select merchant_id, verdict, count(*) as clicks from affiliate_clicks group by 1, 2
) r
full join click_totals t using (merchant_id, verdict)
where r.clicks is distinct from t.clicks
order by 1, 2 limit 20;

-- name: audit_clicks_without_offer
-- Clicks whose offer is unknown or belongs to another merchant.
select c.external_click_id, c.offer_id, c.merchant_id
from affiliate_clicks c
left join offers o on o.id = c.offer_id and o.merchant_id = c.merchant_id
where o.id is null limit 20;
