import string
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.client_address import ClientAddress
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.links.tracking_template import parse_template
from couponflow.messages import Click
from couponflow.redirect.offers import MerchantEntry, OfferEntry, OfferTable
from couponflow.redirect.rate_limit import RateLimit
from couponflow.redirect.resolver import Detour, Redirect, Refusal, Resolution, Resolver
from couponflow.redirect.verdict import VerdictJudge
from tests.samples import (
    BROWSER,
    CLICKED_AT,
    FROM_A_BROWSER,
    MERCHANT_ID,
    OFFER_ID,
    OTHER_OFFER_ID,
    TEMPLATE,
    USER_ID,
    FakeHeaders,
)

PEER = "198.51.100.4:5555"
PATH = f"/out/zenmart/{OFFER_ID}/{USER_ID}"
FOREVER = float("inf")
REASONS = {
    "malformed": 400,
    "path-too-long": 414,
    "rate-limited": 429,
    "offer-unknown": 404,
    "offer-of-another-merchant": 404,
    "offer-not-started": 404,
    "offer-ended": 410,
    "catalogue-loading": 503,
}


def offer(
    starts_at: float = -FOREVER, ends_at: float = FOREVER, fallback: str | None = None
) -> OfferEntry:
    merchant = MerchantEntry(MERCHANT_ID, "zenmart", "Zenmart", fallback)
    parts = parse_template(TEMPLATE).fill_url("https://shop.example/a?b=c")
    return OfferEntry(merchant, parts, starts_at, ends_at)


def resolver(offers: OfferTable, clock: ManualClock | None = None, *, limit: int = 0) -> Resolver:
    made = Resolver(
        offers,
        clock or ManualClock(),
        Uuid7Generator(),
        ClientAddress(("10.0.0.0/8",)),
        RateLimit(limit),
        VerdictJudge(60),
    )
    made.catalogue_complete = True
    return made


def resolve(made: Resolver, path: str = PATH, headers: FakeHeaders = FROM_A_BROWSER) -> Resolution:
    return made.resolve("GET", path, PEER, headers)


def refused(resolution: Resolution) -> tuple[int, str]:
    assert isinstance(resolution, Refusal)
    assert resolution.detail
    return resolution.status, resolution.reason


def clicked(resolution: Resolution) -> Click:
    assert isinstance(resolution, Redirect)
    return resolution.click


def test_a_known_offer_leads_to_the_network_with_the_click_id() -> None:
    headers = FakeHeaders(("user-agent", BROWSER), ("referer", "https://blog.example/deals"))
    resolution = resolve(resolver({OFFER_ID: offer()}), headers=headers)
    click = clicked(resolution)
    assert isinstance(resolution, Redirect)
    expected = (
        f"https://go.example/c?sub={click.click_id}&to=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc"
    )
    assert resolution.location == expected
    assert UUID(click.click_id).version == 7
    assert msgspec.structs.replace(click, click_id="") == Click(
        click_id="",
        merchant_id=MERCHANT_ID,
        offer_id=OFFER_ID,
        user_id=USER_ID,
        clicked_at=CLICKED_AT,
        ip="198.51.100.4",
        user_agent=BROWSER,
        referer="https://blog.example/deals",
        verdict="human",
    )


def test_each_click_has_an_id_of_its_own_and_a_verdict() -> None:
    made = resolver({OFFER_ID: offer()})
    clicks = [clicked(resolve(made)) for _ in range(3)]
    clicks.append(clicked(made.resolve("HEAD", PATH, PEER, FROM_A_BROWSER)))
    clicks.append(clicked(resolve(made, headers=FakeHeaders())))
    verdicts = ["human", "duplicate", "duplicate", "prefetch", "bot"]
    assert [click.verdict for click in clicks] == verdicts
    assert len({click.click_id for click in clicks}) == 5


def test_ids_in_capitals_are_the_same_ids_and_count_once_against_the_limit() -> None:
    made = resolver({OFFER_ID: offer()}, limit=2)
    path = f"/out/zenmart/{OFFER_ID.upper()}/{USER_ID.upper()}"
    click = clicked(resolve(made, path))
    assert (click.offer_id, click.user_id) == (OFFER_ID, USER_ID)
    assert clicked(resolve(made)).verdict == "duplicate"
    assert refused(resolve(made, path)) == (429, "rate-limited")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/out/", (400, "malformed")),
        ("/out/zenmart", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID}", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID}/", (400, "malformed")),
        (f"{PATH}/", (400, "malformed")),
        (f"{PATH}/more", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID}/someone", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID[:-1]}/{USER_ID}", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID.replace('-', '')}/{USER_ID}", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID}/{USER_ID}\n", (400, "malformed")),
        (f"/out/zenmart/{OFFER_ID}/{USER_ID[:-1]}\u0661", (400, "malformed")),
        (f"/out//{OTHER_OFFER_ID}/{USER_ID}", (400, "malformed")),
        (f"/out/zenmart/{OTHER_OFFER_ID}/{USER_ID}", (404, "offer-unknown")),
        (f"/out/aabazaar/{OFFER_ID}/{USER_ID}", (404, "offer-of-another-merchant")),
        (f"/out/Zenmart/{OFFER_ID}/{USER_ID}", (404, "offer-of-another-merchant")),
        ("/out/" + "a" * 600, (414, "path-too-long")),
        (f"{PATH}/" + "a" * 600, (414, "path-too-long")),
        (f"/out/{'a' * 600}/{OTHER_OFFER_ID}/{USER_ID}", (414, "path-too-long")),
    ],
)
def test_a_link_that_leads_nowhere_says_why(path: str, expected: tuple[int, str]) -> None:
    assert refused(resolve(resolver({OFFER_ID: offer()}), path)) == expected


def test_until_all_offers_are_in_memory_an_unknown_one_may_yet_come() -> None:
    made = resolver({OFFER_ID: offer()})
    made.catalogue_complete = False
    resolution = resolve(made, f"/out/zenmart/{OTHER_OFFER_ID}/{USER_ID}")
    assert refused(resolution) == (503, "catalogue-loading")
    assert isinstance(resolution, Refusal)
    assert resolution.retry_after_seconds == 1
    assert isinstance(resolve(made), Redirect)


def test_an_offer_is_on_from_its_start_until_just_before_its_end() -> None:
    clock = ManualClock()
    table = {OFFER_ID: offer(starts_at=CLICKED_AT + 10, ends_at=CLICKED_AT + 20)}
    made = resolver(table, clock)
    early = resolve(made)
    assert refused(early) == (404, "offer-not-started")
    assert isinstance(early, Refusal)
    assert early.detail == "This offer starts on 21 September 2026, 14:13 UTC."
    clock.advance(10)
    assert isinstance(resolve(made), Redirect)
    clock.advance(10)
    assert refused(resolve(made)) == (410, "offer-ended")


def test_an_ended_offer_leads_to_the_fallback_page_untracked() -> None:
    fallback = "https://shop.example/sale"
    ended = offer(ends_at=CLICKED_AT, fallback=fallback)
    withdrawn = offer(ends_at=-FOREVER, fallback=fallback)
    made = resolver({OFFER_ID: ended, OTHER_OFFER_ID: withdrawn})
    assert resolve(made) == Detour(fallback)
    assert resolve(made, PATH.replace(OFFER_ID, OTHER_OFFER_ID)) == Detour(fallback)


def test_past_the_limit_an_address_is_told_when_to_come_back() -> None:
    clock = ManualClock()
    made = resolver({OFFER_ID: offer()}, clock, limit=2)
    assert [type(resolve(made)) for _ in range(2)] == [Redirect, Redirect]
    clock.advance(20.5)
    resolution = resolve(made)
    assert refused(resolution) == (429, "rate-limited")
    assert isinstance(resolution, Refusal)
    assert resolution.retry_after_seconds == 40
    other = made.resolve("GET", PATH, "198.51.100.5:1", FROM_A_BROWSER)
    assert isinstance(other, Redirect)


def test_malformed_links_count_against_the_limit_too() -> None:
    made = resolver({OFFER_ID: offer()}, limit=1)
    assert refused(resolve(made, "/out/x")) == (400, "malformed")
    assert refused(resolve(made)) == (429, "rate-limited")


def test_stored_headers_are_bounded_and_free_of_control_characters() -> None:
    headers = FakeHeaders(("user-agent", "a\x00b\r\nc" + "d" * 600), ("referer", "e" * 2000))
    click = clicked(resolve(resolver({OFFER_ID: offer()}), headers=headers))
    assert click.user_agent == "a b  c" + "d" * 506
    assert click.referer == "e" * 1024


slugs = st.sampled_from(["zenmart", "aabazaar", ""]) | st.text(max_size=20)
ids = st.sampled_from([OFFER_ID, OFFER_ID.upper(), OTHER_OFFER_ID, USER_ID]) | st.text(max_size=40)
paths = st.one_of(
    st.text(max_size=700).map("/out/".__add__),
    st.lists(st.one_of(slugs, ids), max_size=6).map(lambda pieces: "/out/" + "/".join(pieces)),
    st.tuples(slugs, ids, ids).map(lambda pieces: "/out/" + "/".join(pieces)),
)
values = st.text(max_size=600)
header_names = st.sampled_from(
    ["user-agent", "referer", "x-forwarded-for", "sec-purpose", "purpose", "accept"]
)
headers_of_any_kind = st.lists(st.tuples(header_names, values), max_size=6)


@given(
    path=paths,
    pairs=headers_of_any_kind,
    peer=st.sampled_from([PEER, "10.0.0.1:1", "[2001:db8::1]:1"]) | st.text(max_size=20),
    method=st.sampled_from(["GET", "HEAD"]),
)
def test_any_request_gets_one_of_the_answers(
    path: str, pairs: list[tuple[str, str]], peer: str, method: str
) -> None:
    table = {OFFER_ID: offer(), OTHER_OFFER_ID: offer(ends_at=0, fallback="https://shop.example/")}
    resolution = resolver(table, limit=5).resolve(method, path, peer, FakeHeaders(*pairs))
    match resolution:
        case Redirect(location, click):
            assert location.count(click.click_id) == 1
            assert set(location) <= set(string.ascii_letters + string.digits + string.punctuation)
            assert click.click_id.join(table[click.offer_id].parts) == location
            assert "\0" not in click.user_agent + click.referer
        case Detour(location):
            assert location == "https://shop.example/"
        case Refusal(status, reason):
            assert REASONS[reason] == status
