"""The made-up requests have the mix, the popularity and the looks they promise."""

import itertools
import random
import re
from collections import Counter
from ipaddress import ip_address, ip_network

import pytest
from crawleruseragents import is_crawler

from couponflow.sandbox.shopper_requests import ShopperLink, ShopperRequest, shopper_requests
from couponflow.sandbox.user_agents import BROWSERS, CRAWLERS

UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
WELL_FORMED = re.compile(f"/out/store/({UUID})/{UUID}")
LINKS = [ShopperLink(f"/out/store/00000000-0000-4000-8000-{n:012}") for n in range(60)]
USERS = [f"11111111-0000-4000-8000-{number:012}" for number in range(20)]


def draw(count: int, seed: int = 2026) -> list[ShopperRequest]:
    requests = shopper_requests(LINKS, USERS, random.Random(seed))
    return list(itertools.islice(requests, count))


def of_kind(kind: str) -> list[ShopperRequest]:
    return [request for request in draw(10_000) if request.kind == kind]


def test_the_mix_is_what_it_says() -> None:
    counts = Counter(request.kind for request in draw(10_000))
    # Of 10,000 about 7,500, 1,200, 600, 500 and 200; exactly these with this seed.
    assert counts == {
        "human": 7531,
        "bot": 1179,
        "double_click": 612,
        "prefetch": 486,
        "broken": 192,
    }


def test_the_same_randomness_makes_the_same_requests() -> None:
    assert draw(500, seed=7) == draw(500, seed=7)
    assert draw(500, seed=7) != draw(500, seed=8)


def test_popular_offers_get_most_clicks() -> None:
    clicks = Counter(request.path.rpartition("/")[0] for request in of_kind("human"))
    order = [clicks[link.path] for link in LINKS]
    assert order[0] == max(order)
    assert order[0] > 1.8 * order[1] > 2.5 * order[4]
    assert min(order) > 0
    assert sum(order[:12]) > sum(order) / 2


def test_a_double_click_follows_its_click_within_two_seconds() -> None:
    pairs = [
        (first, second)
        for first, second in itertools.pairwise(draw(10_000))
        if second.kind == "double_click"
    ]
    assert len(pairs) == len(of_kind("double_click"))
    for first, second in pairs:
        assert first.kind == "human"
        assert (second.path, second.headers) == (first.path, first.headers)
        assert 0 < second.repeat_seconds < 2


def test_only_double_clicks_have_a_delay_of_their_own() -> None:
    assert all(
        request.repeat_seconds == 0 for request in draw(10_000) if request.kind != "double_click"
    )


def test_prefetches_say_so_or_ask_for_the_head_alone() -> None:
    prefetches = of_kind("prefetch")
    heads = [request for request in prefetches if request.method == "HEAD"]
    hinted = [request for request in prefetches if "sec-purpose" in request.headers]
    assert len(heads) + len(hinted) == len(prefetches)
    assert len(heads) > 100
    assert {request.headers["sec-purpose"] for request in hinted} == {
        "prefetch",
        "prefetch;prerender",
    }


def test_broken_links_are_of_every_sort_and_no_offer_we_know() -> None:
    known = {link.path.rpartition("/")[2] for link in LINKS}
    broken = of_kind("broken")
    matches = [WELL_FORMED.fullmatch(request.path) for request in broken]
    unknown = [match[1] for match in matches if match is not None]
    assert len(unknown) > 10
    assert known.isdisjoint(unknown)
    assert len(broken) - len(unknown) > 10


def test_everything_else_is_a_well_formed_link_of_a_user() -> None:
    for request in draw(10_000):
        if request.kind != "broken":
            offer, _, user = request.path.rpartition("/")
            assert ShopperLink(offer) in LINKS
            assert user in USERS


def test_crawlers_look_like_crawlers_and_people_do_not() -> None:
    assert len(set(BROWSERS)) == 25
    assert [agent for agent in BROWSERS if is_crawler(agent)] == []
    assert [agent for agent in CRAWLERS if not is_crawler(agent)] == []
    assert {request.headers["user-agent"] for request in of_kind("bot")} == set(CRAWLERS)
    assert {request.headers["user-agent"] for request in of_kind("human")} <= set(BROWSERS)


def test_addresses_are_of_the_ranges_kept_for_documentation() -> None:
    people = [ip_network("203.0.113.0/24"), ip_network("198.51.100.0/24")]
    crawlers = [ip_network("192.0.2.0/24")]
    for request in draw(2_000):
        address = ip_address(request.headers["x-forwarded-for"])
        networks = crawlers if request.kind == "bot" else people
        assert any(address in network for network in networks)


@pytest.mark.parametrize(("links", "users"), [([], USERS), (LINKS, [])])
def test_nobody_comes_where_there_is_nothing(links: list[ShopperLink], users: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one link and one user"):
        next(shopper_requests(links, users, random.Random(1)))
