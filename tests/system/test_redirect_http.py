"""What shoppers, browsers and mischief get from the redirector's port, whichever server it has."""

import re
import unicodedata
from dataclasses import dataclass
from uuid import uuid4

import anyio
import pytest

from tests.system.conftest import RATE_LIMIT, STATS_TOKEN
from tests.system.daemon_process import DaemonProcess
from tests.system.raw_http import Answer, answer_to, try_answer_to
from tests.system.shop import (
    FALLBACK_URL,
    WITHOUT_FALLBACK,
    destination,
    link,
    offer_id,
    user_id,
)

BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"
PERSON = {"User-Agent": BROWSER}
CHANGE_SECONDS = 2.0
POLL_SECONDS = 0.02

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


@dataclass(frozen=True, slots=True)
class StoredClick:
    """A row of affiliate_clicks."""

    merchant: str
    offer_id: str
    user_id: str
    ip: str
    user_agent: str
    referer: str
    verdict: str


def click_id_of(answer: Answer) -> str:
    assert answer.status == 302, answer
    found = re.search(r"[?&]subid=([0-9a-f-]{36})&", answer.headers["location"])
    assert found is not None, answer
    return found[1]


def has_control_characters(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)


async def stored_click(daemon: DaemonProcess, click_id: str) -> StoredClick:
    query = f"""
        select m.slug, c.offer_id::text, c.user_id::text, host(c.ip), c.user_agent, c.referer,
               c.verdict
        from affiliate_clicks c join merchants m on m.id = c.merchant_id
        where c.external_click_id = '{click_id}'
    """
    await daemon.stored([click_id])
    rows = await daemon.rows(query)
    assert len(rows) == 1
    return StoredClick(*(str(value) for value in rows[0]))


async def clicked(
    daemon: DaemonProcess, path: str, headers: dict[str, str], *, method: str = "GET"
) -> StoredClick:
    """Follow a link; the row that this made."""
    answer = await daemon.get(path, headers, method=method)
    return await stored_click(daemon, click_id_of(answer))


async def refused(
    daemon: DaemonProcess,
    path: str,
    status: int,
    problem: str,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Ask for a path that must be refused; no click comes of it."""
    before = await daemon.metrics()
    answer = await daemon.get(path, headers or {})
    assert (answer.status, answer.problem) == (status, problem)
    assert answer.headers["cache-control"] == "no-store"
    assert "location" not in answer.headers
    after = await daemon.metrics()
    recorded = 'couponflow_redirects_total{outcome="redirected"}'
    assert after[recorded] == before[recorded]
    counted = f'couponflow_redirects_total{{outcome="{problem}"}}'
    assert after[counted] == before.get(counted, 0) + 1
    return answer


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


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"M" * 4096, "M" * 512),
        (b"tab\there", "tab here"),
        ("Mobile \U0001f600 phone".encode(), None),
        (b"latin \xe9\xff bytes", None),
        (b"C1 \x80\x85\x9b", None),
    ],
)
async def test_odd_user_agents_are_stored_cleaned(
    plain_daemon: DaemonProcess, sent: bytes, stored: str | None
) -> None:
    path = f"/out/with-fallback/{offer_id('live')}/{uuid4()}"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: ".encode()
    answer = await answer_to(plain_daemon.redirect_port, request + sent + b"\r\n\r\n")
    click = await stored_click(plain_daemon, click_id_of(answer))
    assert not has_control_characters(click.user_agent)
    # The servers differ in what they make of bytes that are not ASCII.
    if stored is not None:
        assert click.user_agent == stored


@pytest.mark.parametrize("byte", [b"\x00", b"\x01", b"\x1b", b"\x7f", b"\n", b"\r"])
async def test_control_characters_in_headers_are_refused_or_stored_cleaned(
    plain_daemon: DaemonProcess, byte: bytes
) -> None:
    path = f"/out/with-fallback/{offer_id('live')}/{uuid4()}"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: a".encode()
    answer = await answer_to(plain_daemon.redirect_port, request + byte + b"b\r\n\r\n")
    if answer.status == 302:
        click = await stored_click(plain_daemon, click_id_of(answer))
        assert not has_control_characters(click.user_agent)
    else:
        assert answer.status == 400


ODD_TARGETS = [
    b"/out/with-fallback/%00/x",
    b"/out/%0d%0aSet-Cookie:%20a=b/x/y",
    b"/out/\xff\xfe/x/y",
    "/out/प्रेम/x/y".encode(),
    b"/out/%ff%fe/x/y",
    b"/out/%/x/y",
    b"/out/%zz/x/y",
    b"/out/../../etc/passwd",
    b"/out/%2e%2e/%2e%2e/x",
    b"//out/a/b/c",
    b"/\x7f",
    b"/out/a\\b/c/d",
    b"/out/a/b/c#fragment",
    b"http://other.example/out/a/b/c",
    b"*",
    b"?",
]


@pytest.mark.parametrize("target", ODD_TARGETS)
async def test_odd_bytes_in_a_path_are_a_client_error(
    plain_daemon: DaemonProcess, target: bytes
) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await try_answer_to(plain_daemon.redirect_port, request)
    assert answer is None or 400 <= answer.status < 500, answer
    assert answer is None or "set-cookie" not in answer.headers
    assert (await plain_daemon.get(link("live", "odd"))).status == 302


async def test_bytes_that_are_no_http_do_not_disturb(plain_daemon: DaemonProcess) -> None:
    for request in (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"hello\r\n\r\n", b"\r\n\r\n\r\n\r\n"):
        async with await anyio.connect_tcp("127.0.0.1", plain_daemon.redirect_port) as stream:
            await stream.send(request)
        assert (await plain_daemon.get(link("live", "noise"))).status == 302


async def test_a_path_of_5000_characters_is_too_long(plain_daemon: DaemonProcess) -> None:
    await refused(plain_daemon, "/out/" + "a" * 5000, 414, "path-too-long")
    long_slug = "/out/" + "a" * 5000 + f"/{offer_id('live')}/{user_id('x')}"
    answer = await plain_daemon.get(long_slug)
    assert answer.status in {404, 414}
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        "".join(f"X-Header-{number}: value\r\n" for number in range(150)),
        f"X-Long: {'a' * 100_000}\r\n",
        f"Cookie: {'a=b; ' * 20_000}\r\n",
    ],
    ids=["150 headers", "100 KB in one header", "100 KB of cookies"],
)
async def test_header_floods_are_client_errors(plain_daemon: DaemonProcess, headers: str) -> None:
    head = f"GET {link('live', 'flood')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = await try_answer_to(plain_daemon.redirect_port, f"{head}{headers}\r\n".encode())
    assert answer is None or answer.status in {302, 400, 431}, answer
    assert (await plain_daemon.get(link("live", "flood"))).status == 302


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


async def leads_to(daemon: DaemonProcess, path: str, status: int, location: str | None) -> None:
    """Return once a link is answered so; fails if that takes longer than it may."""
    with anyio.fail_after(CHANGE_SECONDS):
        while True:
            answer = await daemon.get(path, PERSON)
            found = answer.headers.get("location", "")
            if answer.status == status and (location is None or location in found):
                return
            await anyio.sleep(POLL_SECONDS)


async def test_a_changed_offer_is_seen_at_once(plain_daemon: DaemonProcess) -> None:
    path, offer = link("moving", "x"), offer_id("moving")
    await leads_to(plain_daemon, path, 302, destination("moving"))
    await plain_daemon.rows(f"update offers set url = 'https://new.example' where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, "&url=https%3A%2F%2Fnew.example")


async def test_a_withdrawn_offer_is_seen_at_once(plain_daemon: DaemonProcess) -> None:
    path, offer = link("closing", "x"), offer_id("closing")
    await leads_to(plain_daemon, path, 302, destination("closing"))
    await plain_daemon.rows(f"update offers set active = false where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, FALLBACK_URL)
    await plain_daemon.rows(f"update offers set active = true where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, destination("closing"))


async def test_a_changed_tracking_template_is_seen_at_once(plain_daemon: DaemonProcess) -> None:
    path = link("live", "x", WITHOUT_FALLBACK)
    template = "https://other.example/go?sid={click_id}&to={url}"
    await leads_to(plain_daemon, path, 302, "https://network.example/click?subid=")
    await plain_daemon.rows(
        f"update merchants set tracking_template = '{template}' where slug = '{WITHOUT_FALLBACK}'"
    )
    await leads_to(plain_daemon, path, 302, "https://other.example/go?sid=")


async def test_changes_are_seen_after_the_listening_connection_was_cut(
    plain_daemon: DaemonProcess,
) -> None:
    cut = await plain_daemon.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and query ilike 'listen %'"
    )
    assert len(cut) == 1
    path, offer = link("unheard", "x"), offer_id("unheard")
    await plain_daemon.rows(f"update offers set url = 'https://heard.example' where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, "&url=https%3A%2F%2Fheard.example")


async def test_changes_are_seen_when_no_notification_comes(strict_daemon: DaemonProcess) -> None:
    path, offer = link("polled", "x"), offer_id("polled")
    await strict_daemon.rows(
        "alter table offers disable trigger offers_notify;"
        f"update offers set active = false where id = '{offer}'"
    )
    # Their rate limit would end this too early.
    with anyio.fail_after(CHANGE_SECONDS):
        for number in range(1000):
            headers = {**PERSON, "X-Forwarded-For": f"192.0.2.{number % 250}"}
            answer = await strict_daemon.get(path, headers)
            if answer.headers["location"] == FALLBACK_URL:
                break
            await anyio.sleep(POLL_SECONDS)
    await strict_daemon.rows("alter table offers enable trigger offers_notify")


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


async def test_in_the_end_statistics_equal_the_rows_and_nothing_went_wrong(
    plain_daemon: DaemonProcess,
) -> None:
    await clicked(plain_daemon, link("live", "last"), PERSON)
    stats = await plain_daemon.settled()
    by_verdict = await plain_daemon.rows(
        "select verdict, count(*) from affiliate_clicks group by verdict"
    )
    assert {name: n for name, n in stats.by_verdict.items() if n} == dict(by_verdict)
    assert stats.last_hour == stats.total == sum(hour.clicks for hour in stats.by_hour)
    assert len(stats.by_hour) == 24
    by_offer = await plain_daemon.rows(
        "select count(*) from affiliate_clicks group by offer_id order by 1 desc limit 10"
    )
    assert [offer.clicks for offer in stats.top_offers] == [row[0] for row in by_offer]
    assert sum(merchant.clicks for merchant in stats.top_merchants) == stats.total
    metrics = await plain_daemon.metrics()
    assert metrics['couponflow_redirects_total{outcome="redirected"}'] == stats.total
    assert 'couponflow_redirects_total{outcome="error"}' not in metrics
    assert "Traceback" not in plain_daemon.stderr
    await plain_daemon.audit()
