"""What shoppers and browsers get from the redirector's port, whichever server it has."""

from uuid import uuid4

import pytest

from tests.system.clicks import (
    BROWSER,
    PERSON,
    StoredClick,
    click_id_of,
    clicked,
    refused,
    stored_click,
)
from tests.system.conftest import RATE_LIMIT, STATS_TOKEN
from tests.system.daemon_process import DaemonProcess
from tests.system.shop import FALLBACK_URL, WITHOUT_FALLBACK, destination, link, offer_id, user_id

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


async def test_a_link_leads_through_the_network_to_the_offer(plain_daemon: DaemonProcess) -> None:
    headers = {**PERSON, "Referer": "https://blog.example/post?id=1"}
    answer = await plain_daemon.get(link("live", "first"), headers)
    click_id = click_id_of(answer)
    assert answer.headers["location"] == (
        f"https://network.example/click?subid={click_id}&url={destination('live')}"
    )
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "strict-origin-when-cross-origin"
    assert answer.body == b""
    assert await stored_click(plain_daemon, click_id) == StoredClick(
        merchant="with-fallback",
        offer_id=offer_id("live"),
        user_id=user_id("first"),
        ip="127.0.0.1",
        user_agent=BROWSER,
        referer="https://blog.example/post?id=1",
        verdict="human",
    )


async def test_ids_in_capitals_are_the_same_ids(plain_daemon: DaemonProcess) -> None:
    path = f"/out/with-fallback/{offer_id('live').upper()}/{user_id('capitals').upper()}"
    click = await clicked(plain_daemon, path, PERSON)
    assert (click.offer_id, click.user_id) == (offer_id("live"), user_id("capitals"))


async def test_a_query_behind_the_link_changes_nothing(plain_daemon: DaemonProcess) -> None:
    path = link("live", "query") + "?url=https://evil.example&utm_source=x"
    answer = await plain_daemon.get(path, PERSON)
    assert "evil" not in answer.headers["location"]
    assert (await stored_click(plain_daemon, click_id_of(answer))).verdict == "human"


async def test_head_is_answered_like_get_without_a_body_and_is_a_prefetch(
    plain_daemon: DaemonProcess,
) -> None:
    click = await clicked(plain_daemon, link("live", "head"), PERSON, method="HEAD")
    assert click.verdict == "prefetch"
    refusal = await plain_daemon.get("/out/with-fallback/x/y", method="HEAD")
    assert (refusal.status, refusal.body) == (400, b"")


@pytest.mark.parametrize("path", ["/out/a/b/c", "/stats"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
async def test_other_methods_are_not_allowed(
    plain_daemon: DaemonProcess, path: str, method: str
) -> None:
    answer = await plain_daemon.get(path, method=method)
    assert (answer.status, answer.problem) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    [
        "/out/",
        "/out/with-fallback",
        f"/out/with-fallback/{offer_id('live')}",
        f"/out/with-fallback/{offer_id('live')}/",
        f"/out/with-fallback/{offer_id('live')}/not-a-uuid",
        f"/out/with-fallback/not-a-uuid/{user_id('x')}",
        link("live", "x") + "/",
        link("live", "x") + "/more/and/more",
        link("live", "x") + "0",
        link("live", "x").replace("-", ""),
    ],
)
async def test_malformed_links_are_bad_requests(plain_daemon: DaemonProcess, path: str) -> None:
    await refused(plain_daemon, path, 400, "malformed")


async def test_an_unknown_offer_is_not_found(plain_daemon: DaemonProcess) -> None:
    path = f"/out/with-fallback/{uuid4()}/{user_id('x')}"
    await refused(plain_daemon, path, 404, "offer-unknown")


@pytest.mark.parametrize(
    "merchant", [WITHOUT_FALLBACK, "nobody", "with-fallbac", "WITH-FALLBACK", ""]
)
async def test_an_offer_of_another_merchant_is_not_found(
    plain_daemon: DaemonProcess, merchant: str
) -> None:
    path = f"/out/{merchant}/{offer_id('live')}/{user_id('x')}"
    await refused(plain_daemon, path, 404, "offer-of-another-merchant")


async def test_an_offer_that_has_not_started_is_not_found(plain_daemon: DaemonProcess) -> None:
    answer = await refused(plain_daemon, link("future", "x"), 404, "offer-not-started")
    assert b"01 January 2100" in answer.body


@pytest.mark.parametrize("kind", ["expired", "inactive"])
async def test_an_ended_offer_leads_to_the_fallback_page_without_a_click(
    plain_daemon: DaemonProcess, kind: str
) -> None:
    before = await plain_daemon.metrics()
    answer = await plain_daemon.get(link(kind, "x"), PERSON)
    assert (answer.status, answer.headers["location"]) == (302, FALLBACK_URL)
    assert answer.headers["cache-control"] == "no-store"
    after = await plain_daemon.metrics()
    for counter, more in (("redirected", 0), ("ended", 1)):
        name = f'couponflow_redirects_total{{outcome="{counter}"}}'
        assert after[name] == before.get(name, 0) + more


@pytest.mark.parametrize("kind", ["expired", "inactive"])
async def test_an_ended_offer_without_a_fallback_page_is_gone(
    plain_daemon: DaemonProcess, kind: str
) -> None:
    await refused(plain_daemon, link(kind, "x", WITHOUT_FALLBACK), 410, "offer-ended")


async def test_a_browser_gets_a_page_and_a_program_gets_problem_details(
    plain_daemon: DaemonProcess,
) -> None:
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    page = await plain_daemon.get("/out/a/b/c", {"Accept": accept})
    assert (page.status, page.headers["content-type"]) == (400, "text/html; charset=utf-8")
    assert b"This link is broken" in page.body
    for program in ("*/*", "application/json", ""):
        headers = {"Accept": program} if program else {}
        await refused(plain_daemon, "/out/a/b/c", 400, "malformed", headers)


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({"User-Agent": BROWSER}, "human"),
        ({"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}, "bot"),
        ({"User-Agent": "facebookexternalhit/1.1"}, "bot"),
        ({}, "bot"),
        ({"User-Agent": BROWSER, "Sec-Purpose": "prefetch;prerender"}, "prefetch"),
        ({"User-Agent": BROWSER, "Purpose": "prefetch"}, "prefetch"),
        ({"User-Agent": BROWSER, "Purpose": "preview"}, "prefetch"),
    ],
)
async def test_every_click_is_stored_with_its_verdict(
    plain_daemon: DaemonProcess, headers: dict[str, str], verdict: str
) -> None:
    path = f"/out/with-fallback/{offer_id('live')}/{uuid4()}"
    assert (await clicked(plain_daemon, path, headers)).verdict == verdict


async def test_a_second_click_of_a_person_on_an_offer_is_a_duplicate(
    plain_daemon: DaemonProcess,
) -> None:
    prefetch = {**PERSON, "Purpose": "prefetch"}
    path = link("live", "twice")
    verdicts = [
        (await clicked(plain_daemon, path, headers)).verdict
        for headers in (prefetch, PERSON, PERSON, PERSON)
    ]
    assert verdicts == ["prefetch", "human", "duplicate", "duplicate"]
    other_offer = link("moving", "twice")
    assert (await clicked(plain_daemon, other_offer, PERSON)).verdict == "human"


async def test_forwarded_addresses_of_strangers_are_not_believed(
    plain_daemon: DaemonProcess,
) -> None:
    headers = {**PERSON, "X-Forwarded-For": "203.0.113.9"}
    click = await clicked(plain_daemon, link("live", "stranger"), headers)
    assert click.ip == "127.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "ip"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("203.0.113.9, 198.51.100.2", "198.51.100.2"),
        ("198.51.100.3, 127.0.0.1", "198.51.100.3"),
        ("203.0.113.9, nonsense", "127.0.0.1"),
        ("2001:DB8::1", "2001:db8::1"),
    ],
)
async def test_forwarded_addresses_of_trusted_proxies_are_believed(
    strict_daemon: DaemonProcess, forwarded: str, ip: str
) -> None:
    path = f"/out/with-fallback/{offer_id('live')}/{uuid4()}"
    click = await clicked(strict_daemon, path, {**PERSON, "X-Forwarded-For": forwarded})
    assert click.ip == ip


async def test_an_address_may_make_so_many_clicks_in_a_minute_and_no_more(
    strict_daemon: DaemonProcess,
) -> None:
    flooder = {**PERSON, "X-Forwarded-For": "198.51.100.77"}
    path = link("live", "flooder")
    statuses = [(await strict_daemon.get(path, flooder)).status for _ in range(RATE_LIMIT)]
    assert statuses == [302] * RATE_LIMIT
    for _ in range(2):
        answer = await refused(strict_daemon, path, 429, "rate-limited", flooder)
        assert 0 < int(answer.headers["retry-after"]) <= 60
    neighbour = {**PERSON, "X-Forwarded-For": "198.51.100.78"}
    assert (await strict_daemon.get(path, neighbour)).status == 302


async def test_statistics_ask_for_the_token(strict_daemon: DaemonProcess) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ü"}):
        answer = await strict_daemon.get("/stats", headers)
        assert (answer.status, answer.problem) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = await strict_daemon.get("/stats", {"Authorization": f"Bearer {STATS_TOKEN}"})
    assert answer.status == 200


async def test_the_port_tells_its_health(plain_daemon: DaemonProcess) -> None:
    health = await plain_daemon.get("/health")
    assert (health.status, health.body) == (200, b'{"status":"alive"}')
    readiness = await plain_daemon.readiness(ops=False)
    assert (readiness.status, readiness.failing) == ("ready", set())
    assert {"role:redirect", "role:clicks", "catalogue", "database"} <= readiness.checks.keys()
    robots = await plain_daemon.get("/robots.txt")
    assert (robots.status, robots.body) == (200, b"User-agent: *\nDisallow: /out/\n")
    nothing = await plain_daemon.get("/")
    assert (nothing.status, nothing.problem) == (404, "not-found")


async def test_statistics_equal_the_rows_and_the_metrics(
    plain_daemon: DaemonProcess,
) -> None:
    await clicked(plain_daemon, link("live", "last"), PERSON)
    stats = await plain_daemon.settled()
    by_verdict = await plain_daemon.rows(
        "select verdict, count(*) from affiliate_clicks group by verdict"
    )
    assert {name: n for name, n in stats.by_verdict.items() if n} == {
        str(verdict): clicks for verdict, clicks in by_verdict
    }
    assert stats.last_hour == stats.total == sum(hour.clicks for hour in stats.by_hour)
    assert len(stats.by_hour) == 24
    by_offer = await plain_daemon.rows(
        "select count(*) from affiliate_clicks group by offer_id order by 1 desc limit 10"
    )
    assert [offer.clicks for offer in stats.top_offers] == [row[0] for row in by_offer]
    assert sum(merchant.clicks for merchant in stats.top_merchants) == stats.total
    metrics = await plain_daemon.metrics()
    assert metrics['couponflow_redirects_total{outcome="redirected"}'] == stats.total
