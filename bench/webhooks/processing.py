"""How fast the events are acted on that a process takes, while they arrive and when no more do."""

import anyio
import msgspec

from bench.redirect.databases import ClickCounter

AFTER_SECONDS = 10.0


class NotProcessed(Exception):
    """Events became dead letters instead of having their effect."""


class Processed(msgspec.Struct, frozen=True):
    """Payments applied to their orders, a second."""

    during: float
    """While events arrived."""
    after: float
    """In ten seconds in which none did."""


class Processing:
    """Watches the payments of one turn."""

    def __init__(self, url: str) -> None:
        self._payments = ClickCounter(url, "payments")
        self._dead_letters = ClickCounter(url, "dead_letters")

    async def applied(self) -> int:
        return await self._payments.count()

    async def after_load(self, before: int, seconds: float) -> Processed:
        """Call it when a load ends that took so long and found so many payments applied."""
        at_end = await self.applied()
        began = anyio.current_time()
        await anyio.sleep(AFTER_SECONDS)
        later = await self.applied()
        rate_after = (later - at_end) / (anyio.current_time() - began)
        dead = await self._dead_letters.count()
        if dead:
            raise NotProcessed(f"{dead:,} events or payments are dead letters")
        return Processed((at_end - before) / seconds, rate_after)
