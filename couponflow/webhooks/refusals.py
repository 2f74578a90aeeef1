"""What was not believed: written down with the beginning of its body, at a bounded rate."""

import hashlib
from collections import deque

import anyio
import psycopg
import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.dead_letters import storable_text
from couponflow.kernel.error_text import describe
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.webhooks.contract import Delivery, Refused
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.store import RefusalRow, store_refusals

BODY_BYTES_KEPT = 256
WRITE_SECONDS = 0.5
WAITING_MAX = 1_000
_log = structlog.get_logger("couponflow.webhooks")


class RefusalLog:
    """Keeps so many refusals a minute of each source; the rest is counted."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        ids: Uuid7Generator,
        metrics: WebhookMetrics,
        per_minute: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._ids = ids
        self._metrics = metrics
        self._per_minute = per_minute
        self._minute = -1
        self._kept: dict[str, int] = {}
        self._waiting: deque[RefusalRow] = deque()

    def note(self, source: str, delivery: Delivery, refused: Refused) -> None:
        """Take down one refusal, if there is room for it."""
        minute = int(self._clock.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._kept = minute, {}
        kept = self._kept.get(source, 0)
        if kept >= self._per_minute or len(self._waiting) >= WAITING_MAX:
            self._metrics.refusals_unwritten += 1
            return
        self._kept[source] = kept + 1
        _log.warning(
            "webhook refused",
            source=source,
            reason=refused.reason,
            detail=refused.detail,
            address=delivery.address,
            body_bytes=len(delivery.body),
            last_this_minute=kept + 1 == self._per_minute,
        )
        self._waiting.append(
            RefusalRow(
                webhook_id=self._ids.make(delivery.received_at),
                received_at=delivery.received_at,
                source=source,
                verdict=refused.reason,
                detail=storable_text(refused.detail)[:500],
                method=delivery.method,
                # What was tried in place of a secret may be a secret of somebody else.
                query="",
                body=delivery.body[:BODY_BYTES_KEPT],
                body_bytes=len(delivery.body),
                body_sha256=hashlib.sha256(delivery.body).digest(),
                address=delivery.address,
            )
        )

    async def run(self) -> None:
        """Write what was noted, every now and then, until cancelled."""
        while True:
            await anyio.sleep(WRITE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write what was noted; what cannot be written is given up, since it proves nothing."""
        if not self._waiting:
            return
        rows, self._waiting = list(self._waiting), deque()
        try:
            async with self._database.transaction() as connection:
                await store_refusals(connection, rows)
        except (DatabaseAway, psycopg.Error) as error:
            self._metrics.refusals_unwritten += len(rows)
            _log.warning("refusals not written", refusals=len(rows), error=describe(error))
