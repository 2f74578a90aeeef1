"""The sample catalogue: whole, valid, and the same on every start."""

from collections import Counter
from urllib.parse import urlsplit

from couponflow.catalogue.rows import parse_merchant, parse_offer, parse_user
from couponflow.catalogue.sample import sample_merchants, sample_offers, sample_users
from couponflow.catalogue.store import load_sample
from couponflow.kernel.database import Database
from couponflow.links.tracking_template import build_link, parse_template
from tests.catalogue.tables import table

SANDBOX = "http://127.0.0.1:3090"


def text_of(value: object) -> str:
    return "" if value is None else str(value)


def test_there_is_enough_of_everything() -> None:
    merchants = sample_merchants(SANDBOX)
    networks = Counter(merchant.network for merchant in merchants)
    assert networks == {"admitad": 3, "vcommission": 3, "cuelinks": 3, "cj": 3}
    offers = Counter(offer.merchant_slug for offer in sample_offers())
    assert offers == {merchant.slug: 5 for merchant in merchants}
    assert len(sample_users()) == 20


def test_no_id_and_no_email_comes_twice() -> None:
    ids = [
        *(merchant.merchant_id for merchant in sample_merchants(SANDBOX)),
        *(offer.offer_id for offer in sample_offers()),
        *(user.user_id for user in sample_users()),
    ]
    assert len(set(ids)) == len(ids) == 92
    assert len({user.email for user in sample_users()}) == 20


def test_ids_never_change_because_links_hold_them() -> None:
    assert sample_merchants(SANDBOX)[0].merchant_id == "8e7b642c-3933-59b6-9ba1-394b80408815"
    assert sample_offers()[0].offer_id == "09eb974d-3033-598f-bc73-e4a208ca3284"
    assert sample_users()[0].user_id == "7b4263c0-cbd9-5926-8ce8-831ed2ea54b9"


def test_an_import_would_take_every_row() -> None:
    for merchant in sample_merchants(SANDBOX):
        problems: list[str] = []
        fields = [
            merchant.slug,
            merchant.name,
            merchant.network,
            merchant.tracking_template,
            text_of(merchant.fallback_url),
            text_of(merchant.cashback_percent),
        ]
        assert parse_merchant(fields, merchant.merchant_id, problems) == merchant
        assert problems == []


def test_an_import_would_take_every_offer_and_user() -> None:
    problems: list[str] = []
    for offer in sample_offers():
        fields = [
            offer.offer_id,
            offer.merchant_slug,
            offer.title,
            offer.url,
            text_of(offer.starts_at),
            text_of(offer.expires_at),
            text_of(offer.active),
        ]
        assert parse_offer(fields, problems) == offer
    for user in sample_users():
        fields = [user.user_id, text_of(user.email), text_of(user.mobile), text_of(user.name)]
        assert parse_user(fields, problems) == user
    assert problems == []


def test_each_way_of_being_unavailable_is_there() -> None:
    fallbacks = {merchant.slug: merchant.fallback_url for merchant in sample_merchants(SANDBOX)}
    expired = [offer for offer in sample_offers() if offer.expires_at]
    assert [bool(fallbacks[offer.merchant_slug]) for offer in expired] == [True, False]
    assert {offer.expires_at.year for offer in expired if offer.expires_at} == {2024}
    starts = Counter(offer.starts_at.year for offer in sample_offers() if offer.starts_at)
    assert starts == {2024: 59, 2100: 1}
    assert Counter(offer.active for offer in sample_offers()) == {True: 59, False: 1}


def test_links_have_their_networks_shape_and_lead_to_the_sandbox() -> None:
    links = {}
    for merchant in sample_merchants(SANDBOX + "/"):
        template = parse_template(merchant.tracking_template)
        links[merchant.network] = build_link(template, "https://s.example/?a", "0" * 26)
    zeros = "0" * 26
    encoded = "https%3A%2F%2Fs.example%2F%3Fa"
    assert links == {
        "admitad": f"{SANDBOX}/admitad/g/zq7nordhaus05/?subid={zeros}&ulp={encoded}",
        "vcommission": (
            f"{SANDBOX}/vcommission/click?campaign_id=10991&pub_id=98117&p1={zeros}&url={encoded}"
        ),
        "cuelinks": f"{SANDBOX}/cuelinks/?cid=50924&source=linkkit&subid={zeros}&url={encoded}",
        "cj": f"{SANDBOX}/cj/click-7811204-12977530?sid={zeros}&url={encoded}",
    }


def test_nobodys_real_site_or_mailbox_is_in_it() -> None:
    hosts = {urlsplit(offer.url).hostname or "" for offer in sample_offers()}
    assert len(hosts) == 12
    assert all(host.endswith(".example") for host in hosts)
    domains = {(user.email or "").partition("@")[2] for user in sample_users()}
    assert domains == {"example.in", "example.com"}


async def test_loading_it_again_changes_nothing(database: Database) -> None:
    await load_sample(database, SANDBOX)
    tables = [await table(database, name) for name in ("merchants", "offers", "users")]
    assert [len(rows) for rows in tables] == [12, 60, 20]
    await load_sample(database, SANDBOX)
    assert [await table(database, name) for name in ("merchants", "offers", "users")] == tables


async def test_loading_it_with_another_address_changes_the_links_only(database: Database) -> None:
    await load_sample(database, SANDBOX)
    offers = await table(database, "offers")
    await load_sample(database, "http://sandbox.example:8080")
    templates = {str(row["tracking_template"])[:27] for row in await table(database, "merchants")}
    assert templates == {"http://sandbox.example:8080"}
    assert await table(database, "offers") == offers
