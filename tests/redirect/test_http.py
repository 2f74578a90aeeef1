from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from couponflow.config import DatabaseSettings
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.journal import Journal, JournalFull
from couponflow.redirect.http import RedirectRoutes
from couponflow.redirect.stats import Stats
from tests.redirect.routes import FALLBACK, RoutesParts, open_routes
from tests.samples import FROM_A_BROWSER, OFFER_ID, OTHER_OFFER_ID, USER_ID, FakeHeaders

PEER = "198.51.100.4:5555"
PATH = f"/out/zenmart/{OFFER_ID}/{USER_ID}"
ENDED = f"/out/aabazaar/{OTHER_OFFER_ID}/{USER_ID}"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[RoutesParts]:
    with open_routes(tmp_path) as opened:
        yield opened


async def problem(routes: RedirectRoutes, path: str, *headers: tuple[str, str]) -> tuple[int, str]:
    answer = await routes.answer("GET", path, FakeHeaders(*headers))
    return answer.status, msgspec.json.decode(answer.body)["type"].rpartition(":")[2]


def test_a_click_is_in_the_journal_before_it_is_answered(parts: RoutesParts) -> None:
    answer = parts.routes.follow("GET", PATH, PEER, FROM_A_BROWSER)
    (click,) = parts.journalled()
    location = dict(answer.headers)["location"]
    assert (answer.status, answer.body) == (302, b"")
    assert location.startswith(f"https://go.example/c?sub={click.click_id}&")
    assert (click.offer_id, click.user_id, click.ip) == (OFFER_ID, USER_ID, "198.51.100.4")
    assert parts.metrics.outcomes == {"redirected": 1}
    assert parts.metrics.verdicts == {"human": 1, "bot": 0, "prefetch": 0, "duplicate": 0}


def test_a_click_is_recorded_whatever_its_verdict(parts: RoutesParts) -> None:
    for method, headers in (
        ("GET", FROM_A_BROWSER),
        ("GET", FROM_A_BROWSER),
        ("HEAD", FROM_A_BROWSER),
        ("GET", FakeHeaders()),
    ):
        assert parts.routes.follow(method, PATH, PEER, headers).status == 302
    verdicts = [click.verdict for click in parts.journalled()]
    assert verdicts == ["human", "duplicate", "prefetch", "bot"]
    assert parts.metrics.verdicts == {"human": 1, "bot": 1, "prefetch": 1, "duplicate": 1}


def test_a_detour_and_a_refusal_are_no_clicks(parts: RoutesParts) -> None:
    detour = parts.routes.follow("GET", ENDED, PEER, FROM_A_BROWSER)
    refusal = parts.routes.follow("GET", "/out/broken", PEER, FROM_A_BROWSER)
    assert (detour.status, dict(detour.headers)["location"]) == (302, FALLBACK)
    assert refusal.status == 400
    assert parts.journalled() == []
    assert parts.metrics.outcomes == {"redirected": 0, "ended": 1, "malformed": 1}


def test_a_head_request_is_answered_without_a_body(parts: RoutesParts) -> None:
    get = parts.routes.follow("GET", "/out/broken", PEER, FROM_A_BROWSER)
    head = parts.routes.follow("HEAD", "/out/broken", PEER, FROM_A_BROWSER)
    assert (head.status, head.headers) == (get.status, get.headers)
    assert get.body
    assert head.body == b""


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "get", ""])
async def test_other_methods_are_refused_everywhere(parts: RoutesParts, method: str) -> None:
    tracked = parts.routes.follow(method, PATH, PEER, FROM_A_BROWSER)
    other = await parts.routes.answer(method, "/health", FROM_A_BROWSER)
    assert [tracked.status, other.status] == [405, 405]
    assert dict(tracked.headers)["allow"] == dict(other.headers)["allow"] == "GET, HEAD"
    assert parts.journalled() == []


def test_a_full_journal_still_redirects_and_counts_what_it_did_not_record(
    parts: RoutesParts,
) -> None:
    fill(parts.journal)
    before = parts.journal.statistics()
    for _ in range(2):
        assert parts.routes.follow("GET", PATH, PEER, FROM_A_BROWSER).status == 302
    after = parts.journal.statistics()
    assert (after.appended, after.refused) == (before.appended, before.refused + 2)
    assert parts.metrics.unrecorded == 2
    assert parts.metrics.outcomes == {"redirected": 2}


def test_unrecorded_clicks_are_told_at_their_begin_every_minute_and_at_their_end(
    parts: RoutesParts,
) -> None:
    def clicked() -> list[tuple[object, ...]]:
        with capture_logs() as logs:
            assert parts.routes.follow("GET", PATH, PEER, FROM_A_BROWSER).status == 302
        return [tuple(v for v in entry.values() if isinstance(v, int)) for entry in logs]

    for _ in range(2):
        assert clicked() == []
        fill(parts.journal)
        assert clicked() == [(1,)]
        parts.clock.advance(59)
        assert clicked() == []
        parts.clock.advance(1)
        assert clicked() == [(3,)]
        assert clicked() == []
        empty(parts.journal)
        assert clicked() == [(4,)]


def empty(journal: Journal) -> None:
    """Hand everything over, and so make room."""
    while (batch := journal.read(1_000)) is not None:
        journal.checkpoint(batch.end)


def fill(journal: Journal) -> None:
    """Append until not even a small record has room."""
    for size in (60_000, 1_000, 10, 1):
        while appended(journal, b"x" * size):
            pass


def appended(journal: Journal, payload: bytes) -> bool:
    try:
        journal.append(payload)
    except JournalFull:
        return False
    return True


def test_a_fault_of_ours_is_a_500_with_a_log_and_a_count(
    parts: RoutesParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.resolver, "_offers", None)
    answer = parts.routes.follow("GET", PATH, PEER, FROM_A_BROWSER)
    assert answer.status == 500
    assert msgspec.json.decode(answer.body)["type"] == "urn:couponflow:problem:internal"
    assert parts.metrics.outcomes == {"redirected": 0, "error": 1}


async def test_the_process_is_alive(parts: RoutesParts) -> None:
    answer = await parts.routes.answer("GET", "/health", FROM_A_BROWSER)
    assert (answer.status, answer.body) == (200, b'{"status":"alive"}')


async def test_it_is_ready_when_the_role_and_its_catalogue_are(parts: RoutesParts) -> None:
    async def ready() -> tuple[int, str]:
        answer = await parts.routes.answer("GET", "/ready", FROM_A_BROWSER)
        return answer.status, msgspec.json.decode(answer.body)["status"]

    assert await ready() == (503, "not_ready")
    parts.health.report("role:redirect", True)
    parts.health.report("catalogue", True)
    assert await ready() == (200, "ready")
    parts.health.report("role:clicks", False, "restarting")
    assert await ready() == (200, "degraded")
    parts.health.report("catalogue", False)
    assert await ready() == (503, "not_ready")


async def test_robots_are_told_to_stay_out(parts: RoutesParts) -> None:
    answer = await parts.routes.answer("GET", "/robots.txt", FROM_A_BROWSER)
    assert (answer.status, answer.body) == (200, b"User-agent: *\nDisallow: /out/\n")


@pytest.mark.parametrize("path", ["/", "/out", "/OUT/x", "/stats/", "//out/x", ""])
async def test_nothing_else_is_here(parts: RoutesParts, path: str) -> None:
    assert await problem(parts.routes, path) == (404, "not-found")


@pytest.mark.parametrize(
    "headers",
    [(), (("authorization", "Bearer wrong"),), (("authorization", "Bearer secreté"),)],
)
async def test_statistics_need_the_token_where_there_is_one(
    tmp_path: Path, headers: tuple[tuple[str, str], ...]
) -> None:
    with open_routes(tmp_path, stats_token="secret") as parts:
        answer = await parts.routes.answer("GET", "/stats", FakeHeaders(*headers))
        assert answer.status == 401
        assert dict(answer.headers)["www-authenticate"] == "Bearer"


async def test_statistics_open_with_the_token(tmp_path: Path, database: Database) -> None:
    with open_routes(tmp_path, database, stats_token="secret") as parts:
        headers = FakeHeaders(("authorization", "Bearer secret"))
        answer = await parts.routes.answer("GET", "/stats", headers)
    assert answer.status == 200
    assert msgspec.json.decode(answer.body, type=Stats).total == 0


async def test_without_postgresql_and_without_earlier_figures_statistics_are_away(
    tmp_path: Path,
) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    settings = DatabaseSettings(connect_timeout_seconds=0.2)
    async with open_database(url, settings) as database:
        with open_routes(tmp_path, database) as parts:
            answer = await parts.routes.answer("GET", "/stats", FROM_A_BROWSER)
    assert (answer.status, dict(answer.headers)["retry-after"]) == (503, "5")
    assert msgspec.json.decode(answer.body)["type"] == "urn:couponflow:problem:database-away"
