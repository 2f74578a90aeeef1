"""The figures of GET /stats: always what the database holds, never a counter of their own."""

from datetime import UTC, datetime, timedelta

import anyio
import msgspec
import psycopg

from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.messages import Verdict
from couponflow.redirect import store
from couponflow.redirect.store import TopMerchant, TopOffer

HOURS = 24
FRESH_SECONDS = 0.2
COST_FACTOR = 2
"""A query that took a second is not repeated for two: statistics never load the database."""
STALE_SECONDS = 1.0
"""How long figures last seen are repeated before PostgreSQL is tried again."""


class HourCount(msgspec.Struct, frozen=True):
    hour: str
    """When the hour began, ISO 8601 in UTC."""
    clicks: int


class Stats(msgspec.Struct, frozen=True):
    """Clicks stored in PostgreSQL, of all time unless a field says otherwise."""

    total: int
    last_hour: int
    """The last 60 whole minutes and the current one: up to 61 minutes."""
    by_hour: list[HourCount]
    """The last 24 hours, oldest first; the last is the current one."""
    by_verdict: dict[Verdict, int]
    top_offers: list[TopOffer]
    """Of the last 24 hours, counted from the rows."""
    top_merchants: list[TopMerchant]
    as_of: str
    stale: bool = False
    """True while PostgreSQL is away, or takes longer than the statement timeout, and these are the
    figures last seen."""


class StatsReader:
    """Reads the figures, at most as often as their cost allows."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._last: Stats | None = None
        self._fresh_until = float("-inf")
        self._one_at_a_time = anyio.Lock()

    async def read(self) -> Stats:
        """The figures; raises `DatabaseAway` when there are none to fall back on."""
        async with self._one_at_a_time:
            started = self._clock.monotonic()
            if self._last is not None and started < self._fresh_until:
                return self._last
            try:
                self._last = await self._query()
            except (DatabaseAway, psycopg.errors.QueryCanceled) as error:
                if self._last is None:
                    raise DatabaseAway(str(error)) from error
                self._last = msgspec.structs.replace(self._last, stale=True)
            finished = self._clock.monotonic()
            self._fresh_until = finished + max(FRESH_SECONDS, COST_FACTOR * (finished - started))
            return self._last

    async def _query(self) -> Stats:
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        this_hour = now.replace(minute=0, second=0, microsecond=0)
        first_hour = this_hour - timedelta(hours=HOURS - 1)
        async with self._database.transaction() as connection:
            await store.begin_snapshot(connection)
            verdicts = await store.clicks_by_verdict(connection)
            minutes = await store.clicks_by_minute(connection, first_hour)
            merchants = await store.top_merchants(connection)
            offers = await store.top_offers(connection, now - timedelta(hours=HOURS))
        return Stats(
            total=sum(verdicts.values()),
            last_hour=_clicks_between(minutes, now - timedelta(hours=1, minutes=1), now),
            by_hour=[
                HourCount(
                    hour.isoformat(),
                    _clicks_between(minutes, hour - timedelta(seconds=1), hour + _LAST_OF_HOUR),
                )
                for hour in (first_hour + timedelta(hours=i) for i in range(HOURS))
            ],
            by_verdict={
                "human": verdicts.get("human", 0),
                "bot": verdicts.get("bot", 0),
                "prefetch": verdicts.get("prefetch", 0),
                "duplicate": verdicts.get("duplicate", 0),
            },
            top_offers=offers,
            top_merchants=merchants,
            as_of=now.isoformat(),
        )


_LAST_OF_HOUR = timedelta(minutes=59)


def _clicks_between(minutes: dict[int, int], after: datetime, until: datetime) -> int:
    """Clicks of the minutes that began after one moment, and at the latest at another."""
    low, high = after.timestamp(), until.timestamp()
    return sum(clicks for minute, clicks in minutes.items() if low < minute <= high)
