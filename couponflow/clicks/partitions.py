"""One partition a day, made before the day begins."""

from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta

import psycopg

from couponflow.clicks import store
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database

SECONDS_A_DAY = 86_400
NAME_TAKEN = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
)
"""It depends on the moment at which another daemon has made the same table."""
OLDEST_DAYS = 400
"""A journal replayed after this long is not a click but a mistake."""


class PartitionMissing(Exception):
    """A day has no partition and cannot get one; its clicks wait.

    The message says what is in the way. Once that is gone, the clicks are stored by themselves.
    """


class Partitions:
    """Knows which days have a partition and makes those that are missing."""

    def __init__(self, database: Database, clock: Clock, ahead_days: int) -> None:
        self._database = database
        self._clock = clock
        self._ahead_days = ahead_days
        self._known: set[date] = set()

    def are_plausible(self, moments: Iterable[float]) -> bool:
        """Whether clicks can have happened then, so that days may be made for them."""
        now = self._clock.now()
        oldest = now - OLDEST_DAYS * SECONDS_A_DAY
        latest = now + self._ahead_days * SECONDS_A_DAY
        return all(oldest <= moment <= latest for moment in moments)

    async def make_ahead(self) -> None:
        """Make partitions for today and the days to come; cheap when they are there."""
        today = datetime.fromtimestamp(self._clock.now(), UTC).date()
        await self.make(today + timedelta(days=ahead) for ahead in range(self._ahead_days + 1))

    async def make_for(self, moments: Collection[float]) -> None:
        """Make the partitions these moments fall into."""
        first, last = int(min(moments) // SECONDS_A_DAY), int(max(moments) // SECONDS_A_DAY)
        days = {first} if first == last else {int(moment // SECONDS_A_DAY) for moment in moments}
        await self.make(date(1970, 1, 1) + timedelta(days=day) for day in days)

    def forget(self) -> None:
        """Look anew which days have a partition; old ones are dropped by the operator."""
        self._known.clear()

    async def make(self, days: Iterable[date]) -> None:
        missing = sorted(set(days) - self._known)
        if not missing:
            return
        async with self._database.connection() as connection:
            self._known |= await store.partition_days(connection)
            for day in missing:
                if day not in self._known:
                    await _create(connection, day)
                    self._known.add(day)


async def _create(connection: psycopg.AsyncConnection, day: date) -> None:
    try:
        await store.create_partition(connection, day)
    except NAME_TAKEN as error:
        # Another daemon made it between the look and the attempt; or it is no partition at all.
        if day not in await store.partition_days(connection):
            raise PartitionMissing(
                f"affiliate_clicks has no partition for {day}, and none can be made: another table "
                f"is called affiliate_clicks_{day:%Y_%m_%d}; rename it, drop it or attach it"
            ) from error
    except (psycopg.errors.InvalidObjectDefinition, psycopg.errors.CheckViolation):
        # Somebody's wider partition or default partition takes the clicks of that day.
        return
