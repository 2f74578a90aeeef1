"""Makes the days of `webhook_logs` before they come, and lets go of what is old."""

import anyio
import psycopg
import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.partitions import drop_partitions, ensure_partitions
from couponflow.webhooks.store import WEBHOOK_LOGS, oldest_waiting, prune_events

INTERVAL_SECONDS = 1_800.0
AGAIN_SECONDS = 5.0
PRUNE_EVENTS = 5_000
_log = structlog.get_logger("couponflow.webhooks")


class Housekeeping:
    """Every daemon does it; that another one does it too is no harm."""

    def __init__(self, database: Database, clock: Clock, keep_days: int, dedup_days: int) -> None:
        self._database = database
        self._clock = clock
        self._keep_days = keep_days
        self._dedup_days = dedup_days

    async def run(self) -> None:
        """Keep house until cancelled."""
        while True:
            try:
                await self.ensure_partitions()
                await self.let_go()
            except (DatabaseAway, psycopg.Error) as error:
                _log.warning("webhook tables not kept yet", error=str(error))
                await anyio.sleep(AGAIN_SECONDS)
            else:
                await anyio.sleep(INTERVAL_SECONDS)

    async def ensure_partitions(self) -> None:
        async with self._database.connection() as connection:
            await ensure_partitions(connection, WEBHOOK_LOGS, self._clock.now())

    async def let_go(self) -> None:
        """Drop days that are old enough, and forget old events' ids."""
        if self._keep_days:
            async with self._database.connection() as connection:
                # What waits, as on a channel that is paused, must be read yet.
                waiting = await oldest_waiting(connection)
                dropped = await drop_partitions(
                    connection, WEBHOOK_LOGS, self._clock.now(), self._keep_days, waiting
                )
            if dropped:
                _log.info("old webhooks dropped", partitions=dropped)
        pruned = PRUNE_EVENTS
        while pruned >= PRUNE_EVENTS:
            async with self._database.connection() as connection:
                pruned = await prune_events(connection, self._dedup_days, PRUNE_EVENTS)
