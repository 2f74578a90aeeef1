"""Mischief and broken clients at the intake's port, whichever server it has."""

import contextlib
import re
from collections.abc import AsyncIterator

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.kernel.database import Database
from couponflow.kernel.http import Listener, ServerName
from tests.webhooks.deliveries import SIGNATURE, signature
from tests.webhooks.routes import PAGE, routes_parts, served

pytestmark = pytest.mark.once

CLOSE = b"connection: close"
CHUNKED = b"transfer-encoding: chunked"
DELIBERATE = {501, 503}
"""The first is the servers' own answer to a coding of the body that they do not know."""


@pytest.fixture(params=["granian", "hypercorn"])
async def listener(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Listener]:
    server: ServerName = request.param
    parts = routes_parts(database, body_seconds=0.05, cors=[PAGE])
    async with served(server, parts) as opened:
        yield opened
    assert {gate.in_flight for gate in parts.gates.values()} == {0}
    assert "failed" not in {
        sample.labels.get("outcome")
        for metric in parts.intake.metrics.collect()
        for sample in metric.samples
    }


def visible(highest: int) -> st.SearchStrategy[bytes]:
    """Bytes that are neither control characters nor spaces."""
    return st.lists(st.integers(0x21, highest), max_size=10).map(bytes)


ODD_HEADERS = [
    CHUNKED,
    f"origin: {PAGE}".encode(),
    b"expect: 100-continue",
    b"content-length: -1",
    b"content-length: 99999999999999999999",
    b"content-encoding: gzip",
    b"upgrade: h2c",
    b"no colon",
]
HEADER_NAMES = [b"x-event-id", b"x-event-type", b"x-key", b"origin", b"x-forwarded-for", b"cookie"]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Signed requests, some with a body of another length than they say; a few are garbled."""
    method = draw(st.sampled_from([b"POST"] * 6 + [b"GET", b"OPTIONS", b"HEAD", b"PRI"]))
    path = draw(st.sampled_from([b"/shop", b"/shop/", b"/net", b"/net/", b"/api/webhook", b"/"]))
    target = path + draw(st.sampled_from([b"", b"?"])) + draw(visible(0x7E))
    header = st.tuples(st.sampled_from(HEADER_NAMES), visible(0xFF)).map(b": ".join)
    headers = draw(st.lists(header, max_size=4))
    if draw(st.integers(0, 3)) == 0:
        headers.append(draw(st.sampled_from(ODD_HEADERS)))
    body = draw(st.binary(max_size=40))
    lines = [b" ".join([method, target, b"HTTP/1.1"]), b"host: a.example", *headers]
    lines.append(f"{SIGNATURE}: {signature(body)}".encode())
    if draw(st.booleans()):
        lines.append(b"content-length: %d" % (len(body) + draw(st.sampled_from([0, 0, 0, 1]))))
    else:
        lines.append(CHUNKED)
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    head = b"\r\n".join(lines)
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(head)))
        rest = head[place + draw(st.integers(0, 4)) :]
        head = head[:place] + draw(st.binary(max_size=4)) + rest
    return b"\r\n".join([head, CLOSE, b"", body])


async def statuses_of(listener: Listener, raw: bytes) -> list[int]:
    """The statuses of all that is answered until the connection is closed, which must be soon."""
    received = b""
    with anyio.fail_after(5):
        async with await anyio.connect_tcp(listener.host, listener.port) as stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.send(raw)
                while True:
                    received += await stream.receive()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=requests())
async def test_whatever_comes_is_answered_or_cut_off_and_is_no_fault_of_ours(
    listener: Listener, raw: bytes
) -> None:
    for status in await statuses_of(listener, raw):
        assert status < 500 or status in DELIBERATE
