-- Merchants, offers and users, and how the redirectors hear that they changed.

create table merchants (
    id                uuid primary key,
    slug              text not null unique check (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name              text not null check (name <> '' and length(name) <= 200),
    network           text not null check (network in ('admitad', 'vcommission', 'cuelinks', 'cj')),
    -- The network's link with {url} and {click_id}; a link without the click id earns nothing.
    tracking_template text not null check (
        tracking_template ~ '^https?://' and position('{click_id}' in tracking_template) > 0
    ),
    -- Where a shopper lands whose offer has ended; null answers 410 instead.
    fallback_url      text check (fallback_url ~ '^https?://'),
    cashback_percent  numeric(5, 2) not null check (cashback_percent between 0 and 100),
    created_at        timestamptz not null default now(),
    -- The transaction that last touched the row: how a redirector asks what is new to it.
    changed_in        xid8 not null default pg_current_xact_id()
);
create index merchants_changed_in on merchants (changed_in);

create table offers (
    id          uuid,
    merchant_id uuid not null references merchants,
    title       text not null check (title <> '' and length(title) <= 500),
    url         text not null check (url ~ '^https?://' and length(url) <= 2000),
    starts_at   timestamptz,
    expires_at  timestamptz,
    active      boolean not null default true,
    created_at  timestamptz not null default now(),
    changed_in  xid8 not null default pg_current_xact_id(),
    -- With the merchant in it, the index alone answers whose an offer is: asked for every click.
    primary key (id) include (merchant_id),
    constraint offers_start_before_they_expire check (starts_at < expires_at)
);
create index offers_changed_in on offers (changed_in);
create index offers_merchant_id on offers (merchant_id);

create table users (
    id         uuid primary key,
    email      text check (email ~ '^[^@\s]+@[^@\s]+$' and length(email) <= 254),
    mobile     text check (mobile ~ '^\+?[0-9]{7,15}$'),
    name       text check (length(name) <= 200),
    created_at timestamptz not null default now()
);
create unique index users_email on users (lower(email));

create function catalogue_stamp() returns trigger language plpgsql as $$
begin
    new.changed_in := pg_current_xact_id();
    return new;
end $$;

create trigger merchants_stamp before update on merchants
    for each row execute function catalogue_stamp();
create trigger offers_stamp before update on offers
    for each row execute function catalogue_stamp();

-- A wake-up without content: equal notifications of one transaction become one, however many
-- rows it wrote, and the listener asks for what changed by `changed_in`.
create function catalogue_notify() returns trigger language plpgsql as $$
begin
    notify couponflow_catalogue;
    return null;
end $$;

create trigger merchants_notify after insert or update on merchants
    for each statement execute function catalogue_notify();
create trigger offers_notify after insert or update on offers
    for each statement execute function catalogue_notify();

-- Clicks and money point at these rows for years: they are retired, never removed.
create function catalogue_keep() returns trigger language plpgsql as $$
begin
    raise exception '% are never deleted, because clicks point at them', tg_table_name
        using hint = 'Retire an offer with: update offers set active = false where id = ...',
              errcode = 'restrict_violation';
end $$;

create trigger merchants_keep before delete or truncate on merchants
    for each statement execute function catalogue_keep();
create trigger offers_keep before delete or truncate on offers
    for each statement execute function catalogue_keep();
