from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.config import DatabaseSettings
from couponflow.kernel.answers import Answer
from couponflow.kernel.client_address import Headers
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.webhooks.http import Request
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.store import EventRow
from couponflow.webhooks.writer import EventWriter, Stored
from tests.samples import FakeHeaders
from tests.webhooks.deliveries import NOWHERE, SIGNATURE, signature
from tests.webhooks.routes import PAGE, RoutesParts, routes_parts

PEER = "198.51.100.4:5555"


class InstantWriter(EventWriter):
    """Takes every event at once, or says so of none."""

    def __init__(self) -> None:
        database = Database(NOWHERE, DatabaseSettings())
        super().__init__(database, ManualClock(), WebhookMetrics(), 5.0)
        self.rows: list[EventRow] = []
        self.answer: Stored = "accepted"
        self.takes_seconds = 0.0
        self.clock = ManualClock()

    def submit(self, row: EventRow, answer: Callable[[Stored], None]) -> None:
        self.rows.append(row)
        self.clock.advance(self.takes_seconds)
        answer(self.answer)


@pytest.fixture
def writer() -> InstantWriter:
    return InstantWriter()


@pytest.fixture
def parts(writer: InstantWriter) -> RoutesParts:
    return routes_parts(writer=writer, cors=[PAGE])


def take(
    parts: RoutesParts,
    body: bytes = b"ann",
    *headers: tuple[str, str],
    path: str = "/shop",
    query: str = "",
    peer: str = PEER,
    signed: str | None = None,
) -> Answer:
    """Have a delivery judged; its answer must come at once."""
    found = parts.routes.find(path)
    assert found is not None
    gate, token = found
    given_headers = FakeHeaders(
        (SIGNATURE, signature(body) if signed is None else signed), *headers
    )
    answers: list[Answer] = []
    request = Request("POST", token, query, given_headers, peer)
    parts.routes.take(gate, request, body, answers.append)
    (answer,) = answers
    return answer


def other(parts: RoutesParts, method: str, path: str, *headers: tuple[str, str]) -> Answer:
    return parts.routes.other(method, path, FakeHeaders(*headers))


def samples(parts: RoutesParts, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for metric in parts.intake.metrics.collect()
        for sample in metric.samples
        if sample.name == name
    }


@pytest.mark.parametrize(
    ("path", "source", "token"),
    [
        ("/shop", "shop", ""),
        ("/shop/", "shop", ""),
        ("/shop/a%2Fb", "shop", "a%2Fb"),
        ("/api/webhook", "queue", ""),
        ("/api/webhook/t", "queue", "t"),
    ],
)
def test_a_source_is_found_by_its_path_with_what_follows(
    parts: RoutesParts, path: str, source: str, token: str
) -> None:
    found = parts.routes.find(path)
    assert found is not None
    assert (found[0].source.name, found[1]) == (source, token)


@pytest.mark.parametrize(
    "path", ["", "/", "//", "shop", "//shop", "/shopping", "/api", "/queue", "/SHOP"]
)
def test_nothing_else_is_a_source(parts: RoutesParts, path: str) -> None:
    assert parts.routes.find(path) is None


def test_callers_cannot_make_up_labels_of_metrics(parts: RoutesParts) -> None:
    for number in range(20):
        assert other(parts, "POST", f"/made/up/{number}").status == 404
    assert samples(parts, "couponflow_webhooks_total") == {("unknown", "unknown"): 20}


def test_what_comes_of_requests_is_counted(parts: RoutesParts, writer: InstantWriter) -> None:
    gate = parts.gates["shop"]
    writer.takes_seconds, writer.clock = 0.25, parts.intake.clock
    assert take(parts).status == 200
    writer.answer = "duplicate"
    assert take(parts).status == 200
    writer.answer = "unavailable"
    assert take(parts).status == 503
    assert take(parts, signed="forged").status == 401
    assert parts.routes.trouble(gate, "too-slow").status == 408
    told = ("accepted", "duplicate", "unavailable", "bad-signature", "too-slow")
    assert parts.outcomes() == dict.fromkeys(told, 1)
    # Only what was acknowledged for the first time is timed.
    assert samples(parts, "couponflow_webhook_seconds_count") == {("shop",): 1}
    assert samples(parts, "couponflow_webhook_seconds_sum") == {("shop",): 0.25}


def test_a_source_has_so_many_places(parts: RoutesParts) -> None:
    gate, another = parts.gates["shop"], parts.gates["net"]
    admitted = [gate.take_place() for _ in range(65)]
    assert admitted == [True] * 64 + [False]
    assert another.take_place()
    gate.give_back_place()
    assert gate.take_place()
    assert not gate.take_place()


def test_a_source_sees_the_headers_it_asks_for(parts: RoutesParts) -> None:
    take(parts, b"ann", ("x-key", "1"), ("x-other", "2"), ("x-key", "3"), ("x-event-id", ""))
    (seen,) = parts.shop.seen
    assert seen.headers == {SIGNATURE: signature(b"ann"), "x-key": "1,3", "x-event-id": ""}


@pytest.mark.parametrize(
    ("peer", "address"), [(PEER, "198.51.100.4"), ("127.0.0.1:1", "192.0.2.44"), ("[::1]:1", "::1")]
)
def test_only_a_trusted_proxy_speaks_for_others(
    writer: InstantWriter, peer: str, address: str
) -> None:
    parts = routes_parts(writer=writer, trusted_proxies=("127.0.0.1",))
    take(parts, b"ann", ("x-forwarded-for", "192.0.2.44"), peer=peer)
    assert [row.address for row in writer.rows] == [address]


def test_what_one_method_may_another_may_not(parts: RoutesParts) -> None:
    told = other(parts, "POST", "/health"), other(parts, "DELETE", "/ready")
    assert [answer.status for answer in told] == [404, 404]
    assert [other(parts, method, "/health").status for method in ("GET", "HEAD")] == [200, 200]


# Anything at all

texts = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=30),
    st.text(max_size=10),
    st.sampled_from(["", "\0", "\r\n", "100%", "\ud800", PAGE, "old", "x" * 5_000]),
)
paths = st.one_of(
    texts.map(lambda text: f"/{text}"),
    texts.map(lambda text: f"/shop/{text}"),
    st.sampled_from(["", "/shop", "/net", "/api/webhook", "/health", "/ready", "/shop/"]),
)
names = st.sampled_from(
    [SIGNATURE, "x-event-id", "x-event-type", "x-key", "origin", "x-forwarded-for", "host"]
)
ALLOWED = {200, 204, 401, 404, 405}


def is_storable(text: str) -> bool:
    return "\0" not in text and text.encode("utf-8", "replace").decode() == text


@settings(max_examples=60, deadline=None)
@given(
    method=st.one_of(st.sampled_from(["POST", "GET", "OPTIONS", "HEAD"]), texts),
    path=paths,
    query=texts,
    headers=st.lists(st.tuples(names, texts), max_size=6),
    body=st.binary(max_size=60),
    signed=st.booleans(),
)
def test_whatever_comes_is_answered_and_can_be_stored(
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
    signed: bool,
) -> None:
    writer = InstantWriter()
    parts = routes_parts(writer=writer, cors=[PAGE])
    # No server lets half a character through in a header.
    given_headers = [(name, text.encode(errors="replace").decode()) for name, text in headers]
    if signed:
        given_headers = [each for each in given_headers if each[0] != SIGNATURE]
        given_headers.append((SIGNATURE, signature(body)))
    answer = answered(parts, method, path, query, FakeHeaders(*given_headers), body)
    assert answer.status in ALLOWED | ({503} if path == "/ready" else set())
    assert not answer.body or msgspec.json.decode(answer.body)
    assert not any(set("\r\n") & set(name + value) for name, value in answer.headers)
    for row in writer.rows:
        assert answer.status == 200
        kept = (row.event_type, row.event_id, row.query, row.headers, row.address, row.message)
        assert all(is_storable(text) for text in kept)
        assert row.event_id
        assert "x-key" not in msgspec.json.decode(row.headers)


def answered(
    parts: RoutesParts, method: str, path: str, query: str, headers: Headers, body: bytes
) -> Answer:
    """As both adapters do it."""
    found = parts.routes.find(path)
    if found is None or method not in found[0].source.methods:
        return parts.routes.other(method, path, headers)
    answers: list[Answer] = []
    request = Request(method, found[1], query, headers, PEER)
    parts.routes.take(found[0], request, body, answers.append)
    (answer,) = answers
    return parts.routes.with_cors(path, headers, answer)
