"""Looks whether the streams still have what the outbox believes they carry.

A stream forgets: FLUSHALL, a failover, an eviction. The row is still here, so the message is handed
over again. What is in the stream, or with a consumer, is left alone, however long it takes.
"""

import random
from collections.abc import Iterable, Sequence

import anyio
import psycopg
import structlog
from prometheus_client.core import CounterMetricFamily, Metric

from couponflow.kernel import outbox_rows
from couponflow.kernel.channel import Stream
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.redis_client import RedisAway

PAGE_ROWS = 500
PAGES_PER_SECOND = 20
"""A walk over a million messages takes a few minutes and a few percent of a core."""
FIRST_ID = "00000000-0000-0000-0000-000000000000"

_TROUBLE = (DatabaseAway, psycopg.OperationalError, RedisAway)
_log = structlog.get_logger("couponflow.outbox")


class OutboxVerifier:
    """Walks over the streamed messages of each channel, again and again."""

    def __init__(
        self,
        streams: Sequence[Stream[Envelope]],
        database: Database,
        randomness: random.Random,
        verify_seconds: float,
    ) -> None:
        self._streams = streams
        self._database = database
        self._randomness = randomness
        self._verify_seconds = verify_seconds
        self.reset = 0
        """Messages found lost since the start."""

    def collect(self) -> Iterable[Metric]:
        """For /metrics."""
        yield CounterMetricFamily(
            "couponflow_outbox_lost",
            "Messages that a stream had lost, handed over again.",
            value=self.reset,
        )

    async def run(self) -> None:
        """Walk until cancelled."""
        while True:
            # Not in step with other daemons: the work is the same for all of them.
            await anyio.sleep(self._verify_seconds * self._randomness.uniform(0.7, 1.3))
            for stream in self._streams:
                try:
                    await self.walk(stream)
                except _TROUBLE as error:
                    _log.warning("stream not verified", channel=stream.name, error=str(error))

    async def walk(self, stream: Stream[Envelope]) -> None:
        """Look once at every message that `stream` is believed to carry."""
        after = FIRST_ID
        while True:
            async with self._database.connection() as connection:
                page = await outbox_rows.streamed_page(connection, stream.name, after, PAGE_ROWS)
            if not page:
                return
            after = page[-1][0].message_id
            gone = set(await stream.missing([entry for _, entry in page]))
            lost = [token for token, entry in page if entry in gone]
            if lost:
                # An entry that was just settled is gone, too: then its row has changed hands.
                async with self._database.connection() as connection:
                    found = await outbox_rows.reset_lost(connection, lost)
                self.reset += found
                _log.warning(
                    "stream lost messages, handing them over again",
                    channel=stream.name,
                    messages=found,
                )
            if len(page) < PAGE_ROWS:
                return
            await anyio.sleep(1 / PAGES_PER_SECOND)
