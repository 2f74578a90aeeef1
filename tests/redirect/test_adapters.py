from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import Message

from couponflow.config import DatabaseSettings
from couponflow.kernel.answers import Answer, AsgiHeaders
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.http import serve
from couponflow.kernel.http_granian_fast import RsgiBody, RsgiPieces, serve_fast
from couponflow.redirect.adapters import AsgiAdapter, RsgiAdapter
from tests.kernel.http_clients import RawAnswer, exchange, new_listener, request, serving
from tests.redirect.routes import FALLBACK, RoutesParts, open_routes
from tests.samples import BROWSER, OFFER_ID, OTHER_OFFER_ID, USER_ID, FakeHeaders

CLICK = f"/out/zenmart/{OFFER_ID}/{USER_ID}"
ENDED = f"/out/aabazaar/{OTHER_OFFER_ID}/{USER_ID}"
FROM_A_BROWSER = (f"user-agent: {BROWSER}", "accept: text/html,*/*", "referer: https://a.example/")

REQUESTS: dict[str, bytes] = {
    "click": request(CLICK, *FROM_A_BROWSER),
    "click with a query": request(CLICK + "?utm=1", *FROM_A_BROWSER),
    "click of a program": request(CLICK),
    "prefetch": request(CLICK, *FROM_A_BROWSER, "sec-purpose: prefetch"),
    "head": request(CLICK, *FROM_A_BROWSER, method="HEAD"),
    "percent-encoded": request(CLICK.replace("0", "%30"), *FROM_A_BROWSER),
    "capitals": request(CLICK.replace(OFFER_ID, OFFER_ID.upper()), *FROM_A_BROWSER),
    "detour": request(ENDED, *FROM_A_BROWSER),
    "page": request("/out/broken", *FROM_A_BROWSER),
    "problem": request("/out/broken", "accept: */*"),
    "head of a problem": request("/out/broken", method="HEAD"),
    "another merchant": request(CLICK.replace("zenmart", "aabazaar")),
    "unknown offer": request(CLICK.replace(OFFER_ID, USER_ID)),
    "too long": request("/out/" + "a" * 700),
    "bytes that are no text": request("/out/%ff%00/%c3%28/%20"),
    "dots": request("/out/../stats"),
    "post": request(CLICK, "content-length: 0", method="POST"),
    "health": request("/health"),
    "head of health": request("/health", method="HEAD"),
    "not ready": request("/ready"),
    "robots": request("/robots.txt"),
    "no token": request("/stats"),
    "nothing": request("/out"),
    "post elsewhere": request("/health", "content-length: 0", method="POST"),
    "odd header": request("/out/broken", "user-agent: caf\xe9", "x-forwarded-for: \xff, 1.1.1.1"),
}


class FakeScope:
    def __init__(self, method: str, path: str, *headers: tuple[str, str]) -> None:
        self.method = method
        self.path = path
        self.query_string = ""
        self.client = "198.51.100.4:5555"
        self.headers = FakeHeaders(*headers)


class FakeProtocol:
    """Keeps what it is told to answer; refuses any header, if it should."""

    def __init__(self, *, refuses_headers: bool = False) -> None:
        self._refuses_headers = refuses_headers
        self.answers: list[Answer] = []

    def __call__(self) -> RsgiBody:
        raise AssertionError("the body of a click is nobody's concern")

    def __aiter__(self) -> RsgiPieces:
        raise AssertionError("the body of a click is nobody's concern")

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.response_bytes(status, headers, b"")

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if self._refuses_headers and headers:
            raise ValueError("a header cannot be sent")
        self.answers.append(Answer(status, headers, body))


async def ask_asgi(
    adapter: AsgiAdapter,
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    client: tuple[str, int] | None = ("198.51.100.4", 5555),
) -> Answer:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("no body is read")

    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": client}
    await adapter(scope, receive, send)
    start, body = sent
    pairs = [(name.decode(), value.decode()) for name, value in start["headers"]]
    # granian adds this one by itself.
    name, length = pairs.pop()
    assert name == "content-length"
    assert method == "HEAD" or length == str(len(body["body"]))
    return Answer(start["status"], pairs, body["body"])


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[RoutesParts]:
    with open_routes(tmp_path) as opened:
        yield opened


@contextmanager
def two_routes(folder: Path) -> Iterator[tuple[RoutesParts, RoutesParts]]:
    with (
        open_routes(folder / "rsgi", stats_token="secret") as first,
        open_routes(folder / "asgi", stats_token="secret") as second,
    ):
        yield first, second


def told(answer: RawAnswer, parts: RoutesParts) -> object:
    """An answer without what must differ: the id of the click it made."""
    status, headers, body = answer.told
    clicks = parts.journalled()
    location = headers.get("location", "")
    for click in clicks:
        location = location.replace(click.click_id, "CLICK")
    return status, {**headers, "location": location}, body


async def test_both_servers_answer_alike(tmp_path: Path) -> None:
    fast_listener, asgi_listener = new_listener("granian"), new_listener("hypercorn")
    with two_routes(tmp_path) as (fast, asgi):
        async with (
            serving(partial(serve_fast, RsgiAdapter(fast.routes)), fast_listener),
            serving(partial(serve, AsgiAdapter(asgi.routes)), asgi_listener),
        ):
            for name, raw in REQUESTS.items():
                of_fast = told(await exchange(fast_listener, raw), fast)
                assert of_fast == told(await exchange(asgi_listener, raw), asgi), name
        recorded = [
            [
                (click.verdict, click.ip, click.user_agent, click.referer, click.offer_id)
                for click in part.journalled()
            ]
            for part in (fast, asgi)
        ]
        assert recorded[0] == recorded[1]
        assert [click[0] for click in recorded[0]] == [
            "human",
            "duplicate",
            "bot",
            "prefetch",
            "prefetch",
            "duplicate",
            "duplicate",
        ]
        assert fast.metrics.outcomes == asgi.metrics.outcomes
        assert "error" not in fast.metrics.outcomes


async def test_an_asgi_server_over_granian_answers_alike(tmp_path: Path) -> None:
    listener = new_listener("granian")
    with open_routes(tmp_path) as parts:
        async with serving(partial(serve, AsgiAdapter(parts.routes)), listener):
            answer = await exchange(listener, request(CLICK, *FROM_A_BROWSER))
            assert answer.status == 302
            assert (await exchange(listener, request("/health"))).body == b'{"status":"alive"}'
        assert [click.ip for click in parts.journalled()] == ["127.0.0.1"]


async def test_statistics_are_answered_by_both(database: Database, tmp_path: Path) -> None:
    with open_routes(tmp_path, database) as parts:
        of_asgi = await ask_asgi(AsgiAdapter(parts.routes), "GET", "/stats")
        protocol = FakeProtocol()
        adapter = RsgiAdapter(parts.routes)
        scope = FakeScope("GET", "/stats")
        assert not adapter.answer_now(scope, protocol)
        await adapter.answer_later(scope, protocol)
    assert of_asgi.status == 200
    assert protocol.answers == [of_asgi]


def test_a_tracked_link_is_answered_at_once_and_nothing_else_is(parts: RoutesParts) -> None:
    adapter = RsgiAdapter(parts.routes)
    protocol = FakeProtocol()
    assert adapter.answer_now(FakeScope("GET", ENDED), protocol)
    (answer,) = protocol.answers
    assert (answer.status, dict(answer.headers)["location"]) == (302, FALLBACK)
    for path in ("/out", "/health", "/stats", "/"):
        assert not adapter.answer_now(FakeScope("GET", path), protocol)
    assert protocol.answers == [answer]


def test_an_answer_the_server_refuses_becomes_a_500(parts: RoutesParts) -> None:
    protocol = FakeProtocol(refuses_headers=True)
    assert RsgiAdapter(parts.routes).answer_now(FakeScope("GET", CLICK), protocol)
    assert protocol.answers == [Answer(500, [])]


async def test_a_fault_behind_another_path_becomes_a_500(
    parts: RoutesParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.routes, "_health", None)
    protocol = FakeProtocol()
    await RsgiAdapter(parts.routes).answer_later(FakeScope("GET", "/ready"), protocol)
    of_asgi = await ask_asgi(AsgiAdapter(parts.routes), "GET", "/ready")
    assert [answer.status for answer in (*protocol.answers, of_asgi)] == [500, 500]


@pytest.mark.parametrize(
    ("client", "ip"),
    [
        (("198.51.100.4", 1), "198.51.100.4"),
        (("2001:db8::1", 1), "2001:db8::1"),
        (None, "127.0.0.1"),
    ],
)
async def test_the_peer_is_read_as_asgi_writes_it(
    parts: RoutesParts, client: tuple[str, int] | None, ip: str
) -> None:
    await ask_asgi(AsgiAdapter(parts.routes), "GET", CLICK, client=client)
    assert [click.ip for click in parts.journalled()] == [ip]


def test_asgi_headers_are_read_by_name() -> None:
    headers = AsgiHeaders([(b"a", b"1"), (b"b", b"caf\xe9"), (b"a", b"2")])
    assert (headers.get("a"), headers.get("c")) == ("1", None)
    assert headers.get_all("a") == ["1", "2"]
    assert headers.get_all("c") == []


async def test_the_lifespan_is_accepted(parts: RoutesParts) -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    with anyio.fail_after(5):
        await AsgiAdapter(parts.routes)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_without_postgresql_both_still_redirect(tmp_path: Path) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    settings = DatabaseSettings(connect_timeout_seconds=0.2)
    async with open_database(url, settings) as database:
        with open_routes(tmp_path / "journal", database) as parts:
            asgi = AsgiAdapter(parts.routes)
            assert (await ask_asgi(asgi, "GET", CLICK)).status == 302
            assert (await ask_asgi(asgi, "GET", "/stats")).status == 503
