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

-- name: commit_durably
-- Make the commit of this transaction wait for the disk. What is committed is acknowledged, and the
-- sender then forgets it; where the server or the role is set to answer earlier, a crash would lose
-- clicks. Other settings wait at least for this disk and are left as they are.
select set_config('synchronous_commit', 'on', true)
where current_setting('synchronous_commit') = 'off';

-- name: create_staging
-- Where a batch lands in which some clicks are stored already; private to the transaction. It has
-- the columns that are written and no others, whatever a migration adds.
create temporary table click_staging on commit drop as
select external_click_id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer,
       verdict
from affiliate_clicks
with no data;

-- name: copy_to_staging
copy click_staging (
    external_click_id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer, verdict
) from stdin;

-- name: take_from_staging
-- Store what is new, and say what of it is to be counted.
insert into affiliate_clicks (
    external_click_id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer, verdict
)
select external_click_id, merchant_id, offer_id, user_id, clicked_at, ip, user_agent, referer,
       verdict
from click_staging
on conflict do nothing
returning extract(epoch from date_trunc('minute', clicked_at, 'UTC'))::bigint,
          merchant_id::text, verdict;

-- name: partition_days
-- The days that have a partition, as text. A default partition is of no day.
select to_char(
    substring(pg_get_expr(c.relpartbound, c.oid) from '''(.*?)''')::timestamptz at time zone 'UTC',
    'YYYY-MM-DD'
)
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'affiliate_clicks'::regclass
  and pg_get_expr(c.relpartbound, c.oid) like 'FOR VALUES FROM (''%';

-- name: has_minutes
-- Whether clicks of a day have been counted.
select exists (
    select from click_minutes
    where minute >= %(first)s::timestamptz and minute < %(end)s::timestamptz
);

-- name: audit_counters_against_rows
-- Minutes whose counters differ from the rows of that minute. Counters outlive rows: where a day's
-- partition was dropped, or made anew after that, they may only be higher.
with complete as (
    select bounds[1]::timestamptz as first, bounds[2]::timestamptz as "end"
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join regexp_match(
        pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*?)''\) TO \(''(.*?)''\)'
    ) as bounds
    where i.inhparent = 'affiliate_clicks'::regclass
      and bounds is not null
      and obj_description(c.oid, 'pg_class') is distinct from 'made anew after a drop'
)
select coalesce(r.minute, m.minute) as minute, coalesce(r.verdict, m.verdict) as verdict,
       coalesce(r.clicks, 0) as rows_clicks, coalesce(m.clicks, 0) as counted_clicks
from (
    select date_trunc('minute', clicked_at, 'UTC') as minute, verdict, count(*) as clicks
    from affiliate_clicks group by 1, 2
) r
full join click_minutes m using (minute, verdict)
where r.clicks is distinct from m.clicks
  and (
      coalesce(r.clicks, 0) > coalesce(m.clicks, 0)
      or exists (select from complete where m.minute >= first and m.minute < "end")
  )
order by 1, 2 limit 20;

-- name: audit_totals_against_rows
-- Merchants whose totals differ from their rows. Totals outlive rows: once a minute of that verdict
-- lies in a day whose partition was dropped, or made anew after that, they may only be higher.
with complete as (
    select bounds[1]::timestamptz as first, bounds[2]::timestamptz as "end"
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join regexp_match(
        pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*?)''\) TO \(''(.*?)''\)'
    ) as bounds
    where i.inhparent = 'affiliate_clicks'::regclass
      and bounds is not null
      and obj_description(c.oid, 'pg_class') is distinct from 'made anew after a drop'
), outlived as (
    select distinct m.verdict from click_minutes m
    where not exists (select from complete where m.minute >= first and m.minute < "end")
)
select coalesce(r.merchant_id, t.merchant_id) as merchant_id,
       coalesce(r.verdict, t.verdict) as verdict,
       coalesce(r.clicks, 0) as rows_clicks, coalesce(t.clicks, 0) as counted_clicks
from (
    select merchant_id, verdict, count(*) as clicks from affiliate_clicks group by 1, 2
) r
full join click_totals t using (merchant_id, verdict)
where r.clicks is distinct from t.clicks
  and (
      coalesce(r.clicks, 0) > coalesce(t.clicks, 0)
      or t.verdict not in (select verdict from outlived)
  )
order by 1, 2 limit 20;

-- name: audit_clicks_without_offer
-- Clicks whose offer is unknown or belongs to another merchant.
select c.external_click_id, c.offer_id, c.merchant_id
from affiliate_clicks c
left join offers o on o.id = c.offer_id and o.merchant_id = c.merchant_id
where o.id is null limit 20;
