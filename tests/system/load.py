"""Shoppers in a hurry: requests without a pause, and a log of every redirect they were given."""

import asyncio
import contextlib
import itertools
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import anyio

from couponflow.catalogue.sample import sample_offers
from tests.system.raw_http import HOST
from tests.system.waiting import until

RECONNECT_SECONDS = 0.01
MORE_DEADLINE_SECONDS = 30.0
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
_CLICK_ID = re.compile(rb"[?&](?:subid|p1|sid)=([0-9a-f-]{36})")
_HEADER_MAX_BYTES = 65_536


class LoadLog:
    """What the clients have seen; an answer counts once its whole header has been read."""

    def __init__(self) -> None:
        self.click_ids: list[str] = []
        """Of every redirect, as its Location tells."""
        self.statuses: Counter[int] = Counter()
        self.broken: Counter[str] = Counter()
        """Requests whose connection ended before the answer, by the name of the error."""
        self.refused = 0
        """Connections that could not be made."""

    @property
    def failures(self) -> dict[str, int]:
        """Everything but redirects, by what it was."""
        others = {str(status): n for status, n in self.statuses.items() if status != 302}
        refused = {"connection refused": self.refused} if self.refused else {}
        return {**others, **self.broken, **refused}

    async def more(self, redirects: int) -> None:
        """Return once so many more redirects were given than at the time of the call."""
        wanted = len(self.click_ids) + redirects

        async def given() -> bool:
            return len(self.click_ids) >= wanted

        await until(given, seconds=MORE_DEADLINE_SECONDS)


@contextlib.asynccontextmanager
async def load(
    port: int, paths: Sequence[str], *, connections: int = 4, pause_seconds: float = 0.0
) -> AsyncIterator[LoadLog]:
    """Send requests for the paths in turn, over so many connections, while the block runs.

    A connection that breaks is made again for ever, so the daemon may come and go meanwhile.
    """
    log = LoadLog()
    requests = itertools.cycle([_request(path) for path in paths])
    async with anyio.create_task_group() as tasks:
        for _ in range(connections):
            tasks.start_soon(_keep_asking, port, requests, log, pause_seconds)
        try:
            yield log
        finally:
            tasks.cancel_scope.cancel()


def sample_paths(randomness: random.Random, count: int = 2000) -> list[str]:
    """Links to the sample's offers that can be followed, for people who never clicked before."""
    offers = [offer for offer in sample_offers() if offer.active and offer.expires_at is None]
    now_on = [offer for offer in offers if offer.starts_at and offer.starts_at.year < 2100]
    return [
        f"/out/{offer.merchant_slug}/{offer.offer_id}/{UUID(int=randomness.getrandbits(128))}"
        for offer in randomness.choices(now_on, k=count)
    ]


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: {USER_AGENT}\r\n\r\n".encode()


async def _keep_asking(
    port: int, requests: "itertools.cycle[bytes]", log: LoadLog, pause_seconds: float
) -> None:
    while True:
        try:
            reader, writer = await asyncio.open_connection(HOST, port, limit=_HEADER_MAX_BYTES)
        except OSError:
            log.refused += 1
            await anyio.sleep(RECONNECT_SECONDS)
            continue
        try:
            while await _ask(reader, writer, next(requests), log):
                if pause_seconds:
                    await anyio.sleep(pause_seconds)
        except (OSError, asyncio.IncompleteReadError) as error:
            log.broken[type(error).__name__] += 1
        finally:
            writer.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, log: LoadLog
) -> bool:
    """Send a request and log the answer; whether the connection may be used again."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    log.statuses[status] += 1
    if status == 302:
        found = _CLICK_ID.search(head)
        assert found is not None, head
        log.click_ids.append(found[1].decode())
    await _read_body(reader, head.lower())
    return b"\r\nconnection: close" not in head.lower()


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    if b"\r\ntransfer-encoding: chunked" in head:
        await reader.readuntil(b"0\r\n\r\n")
        return
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    assert length is not None, head
    await reader.readexactly(int(length[1]))
