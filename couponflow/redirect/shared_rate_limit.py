"""The rate limit of all redirecting daemons together, kept in step behind their backs."""

from collections.abc import Iterator

import anyio
import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.shared_state import SharedState, SharedStateAway
from couponflow.redirect.rate_limit import Change, RateLimit

CHECK = "redirect:rate-limit"
KEY = "ratelimit:redirect:"
"""Before the address in Redis; an IPv6 household is `2001:0db8:0000:0001::/64`."""
SYNC_SECONDS = 0.2
MAX_ADDRESSES_A_SYNC = 50
"""Those with the most new clicks. It bounds what sharing takes from the redirects' time, to about
3% of it."""
SENDERS = 4
"""Addresses under way at once: few, so that no turn of the event loop is long."""
_log = structlog.get_logger("couponflow.redirect")


class SharedRateLimit:
    """Tells the installation what this daemon allowed, and this daemon what the others did.

    The limit decides by itself, in memory; every `SYNC_SECONDS` its new counts are added to those
    in Redis, and the totals replace its own. So an address that is near its limit may get a few
    more than the limit: what other daemons allow it within one sync, and, while more addresses
    than `MAX_ADDRESSES_A_SYNC` click in each sync, what those allow it that see little of it.

    Without Redis each daemon counts alone, and says so in the check `redirect:rate-limit`; what it
    could not share it shares when Redis is back. Where an answer of Redis is lost, clicks of an
    address may count twice in that minute.
    """

    def __init__(
        self, limit: RateLimit, shared: SharedState, health: HealthBoard, clock: Clock
    ) -> None:
        self._limit = limit
        self._shared = shared
        self._health = health
        self._clock = clock
        self._trouble: str | None = "not asked yet"

    async def run(self) -> None:
        """Sync for ever."""
        while True:
            await self.sync()
            await anyio.sleep(SYNC_SECONDS)

    async def sync(self) -> None:
        """Share what changed since the last time, and learn what others shared."""
        if self._trouble is not None and not await self._is_back():
            return
        now = self._clock.monotonic()
        changes = iter(self._limit.take_changed(MAX_ADDRESSES_A_SYNC, now))
        async with anyio.create_task_group() as senders:
            for _ in range(SENDERS):
                senders.start_soon(self._share, changes, now)

    async def _is_back(self) -> bool:
        try:
            await self._shared.counted(CHECK)
        except SharedStateAway as error:
            self._report(str(error))
        else:
            self._report(None)
        return self._trouble is None

    async def _share(self, changes: Iterator[Change], now: float) -> None:
        for change in changes:
            if self._trouble is not None:
                self._limit.keep(change)
                continue
            window_seconds = change.window.ends_at - now
            try:
                told = await self._shared.rate_limit_add(
                    KEY + change.key, change.amount, window_seconds=window_seconds
                )
            except SharedStateAway as error:
                self._limit.keep(change)
                self._report(str(error))
            else:
                ends_at = self._clock.monotonic() + told.seconds_left
                self._limit.learn(change, told.count, ends_at)

    def _report(self, trouble: str | None) -> None:
        if trouble is not None and self._trouble is None:
            _log.warning("rate limit is counted by this daemon alone", error=trouble)
        self._trouble = trouble
        alone = f"counted by this daemon alone: {trouble}"
        self._health.report(CHECK, trouble is None, alone if trouble else "")
