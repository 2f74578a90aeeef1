"""Notices that a source has fallen silent: a handler that is never called raises no error."""

from collections.abc import Collection, Mapping

import anyio
import psycopg
import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.health import HealthBoard
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.store import latest_events

LOOK_SECONDS = 10.0
_OFF = "it is off here: it has no secret"
_log = structlog.get_logger("couponflow.webhooks")


class SilenceWatch:
    """Compares when each source was last believed, in the whole installation, with what is
    expected of it."""

    def __init__(
        self,
        expected: Mapping[str, float],
        database: Database,
        health: HealthBoard,
        metrics: WebhookMetrics,
        clock: Clock,
        off: Collection[str] = (),
    ) -> None:
        """`expected` is the longest silence by source, in seconds, where any is expected.

        `off` are the sources without a secret: here nobody is believed who calls them.
        """
        self._off = frozenset(off)
        self._expected = {name: seconds for name, seconds in expected.items() if seconds}
        self._database = database
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self._since = clock.now()
        self._silent: set[str] = set()

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        if not self._expected:
            return
        while True:
            try:
                await self.look()
            except (DatabaseAway, psycopg.Error) as error:
                # That is on the board already, by the database's own name.
                _log.debug("silence not looked for", error=str(error))
            await anyio.sleep(min(LOOK_SECONDS, *self._expected.values()))

    async def look(self) -> None:
        """Look once; one that never sent anything is silent since this process began."""
        async with self._database.connection() as connection:
            latest = await latest_events(connection, list(self._expected))
        now = self._clock.now()
        silence: dict[str, tuple[float, bool]] = {}
        for name, expected in self._expected.items():
            last = latest.get(name)
            since = max(0.0, now - (last.timestamp() if last else self._since))
            too_long = since > expected
            silence[name] = (since, too_long)
            told = f"last event {last:%Y-%m-%d %H:%M:%S} UTC" if last else "no event ever"
            detail = f"{told}, {since:.0f} s ago" if last else f"{told}, in {since:.0f} s"
            detail += f"; expected every {expected:g} s"
            if name in self._off:
                detail += f"; {_OFF}"
            self._health.report(f"webhook:{name}", not too_long, detail)
            self._tell(name, since, too_long)
        self._metrics.silence = silence

    def _tell(self, name: str, since: float, too_long: bool) -> None:
        if too_long and name not in self._silent:
            self._silent.add(name)
            why = {"reason": _OFF} if name in self._off else {}
            _log.error("webhook source is silent", source=name, seconds=round(since), **why)
        elif not too_long and name in self._silent:
            self._silent.discard(name)
            _log.warning("webhook source is heard again", source=name)
