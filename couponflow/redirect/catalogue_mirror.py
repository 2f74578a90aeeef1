"""Keeps the offers in memory equal to the catalogue in PostgreSQL."""

import gc
import random
from collections.abc import Callable
from contextlib import aclosing
from string import punctuation
from urllib.parse import quote

import anyio
import psycopg
import structlog

from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.health import HealthBoard
from couponflow.links.tracking_template import TemplateInvalid, TrackingTemplate, parse_template
from couponflow.links.web_url import url_problem
from couponflow.redirect import store
from couponflow.redirect.offers import MerchantEntry, OfferEntry, OfferTable

CHECK = "catalogue"
NOTIFICATION = "couponflow_catalogue"
_KEPT = punctuation
"""What is not to be encoded again, `%` included."""
_log = structlog.get_logger("couponflow.redirect")


class CatalogueMirror:
    """Loads every offer, then only what changed: when told by NOTIFY, and every so often anyway.

    While PostgreSQL is away, or refuses to be read, the offers stay as they were last seen and
    keep redirecting; the health check `catalogue` says why, and fails after `stale_seconds`.
    """

    def __init__(
        self,
        offers: OfferTable,
        database: Database,
        health: HealthBoard,
        clock: Clock,
        *,
        poll_seconds: float,
        stale_seconds: float,
        on_complete: Callable[[], None],
    ) -> None:
        self._offers = offers
        self._database = database
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._stale_seconds = stale_seconds
        self._on_complete = on_complete
        self._merchants: dict[str, tuple[MerchantEntry, TrackingTemplate | None]] = {}
        self._since: int | None = None
        self._synced_at: float | None = None
        self._problem = ""
        health.add_probe(CHECK, self._check)

    async def run(self) -> None:
        """Mirror until cancelled, through any outage and any error of PostgreSQL."""
        randomness = random.Random()  # noqa: S311 - spreads retries, guards nothing
        waits = exponential_backoff(0.1, 2.0, randomness)
        while True:
            try:
                async with self._database.listen(NOTIFICATION) as notifications:
                    while True:
                        await self.sync()
                        waits = exponential_backoff(0.1, 2.0, randomness)
                        await notifications.wait(self._poll_seconds)
            except (DatabaseAway, psycopg.Error) as error:
                if not self._problem:
                    _log.warning("catalogue cannot be refreshed", error=str(error))
                self._problem = f"{_cause_of(error)}; serving the offers last seen"
                await anyio.sleep(next(waits))

    async def sync(self) -> None:
        """Take over everything that was committed before this call."""
        async with self._database.transaction() as connection:
            horizon = await store.begin_snapshot(connection)
            since = self._since
            # A lower horizon than before is another cluster: a restored or replaced database.
            if since is None or horizon < since:
                since = 0
            rows = await store.merchants_since(connection, since)
            for row in rows:
                self._merchants[row.merchant_id] = _compile(row)
            merchant_ids = [row.merchant_id for row in rows] if since else []
            seen: set[str] | None = set() if not since and self._offers else None
            async with aclosing(store.offers_since(connection, since, merchant_ids)) as offers:
                async for offer in offers:
                    self._take(*offer)
                    if seen is not None:
                        seen.add(offer[0])
        if seen is not None:
            for gone in self._offers.keys() - seen:
                del self._offers[gone]
        if self._since is None:
            _log.info("catalogue loaded", offers=len(self._offers), merchants=len(self._merchants))
            # A million offers that stay: the garbage collector need not walk over them.
            gc.collect()
            gc.freeze()
        self._since = horizon
        self._synced_at = self._clock.monotonic()
        self._problem = ""
        self._on_complete()

    def _take(
        self, offer_id: str, merchant_id: str, url: str, starts_at: float, ends_at: float
    ) -> None:
        merchant, template = self._merchants[merchant_id]
        if template is None:
            self._offers.pop(offer_id, None)
            return
        self._offers[offer_id] = OfferEntry(merchant, template.fill_url(url), starts_at, ends_at)

    def _check(self) -> tuple[bool, str]:
        if self._synced_at is None:
            return False, self._problem or "not loaded yet"
        age = self._clock.monotonic() - self._synced_at
        if age > self._stale_seconds:
            why = f"; {self._problem}" if self._problem else ""
            return False, f"{len(self._offers)} offers, last refreshed {age:.0f} s ago{why}"
        return True, self._problem or f"{len(self._offers)} offers"


def _cause_of(error: DatabaseAway | psycopg.Error) -> str:
    if isinstance(error, DatabaseAway):
        return "PostgreSQL is away"
    # What follows the first line quotes the statement.
    reason = error.diag.message_primary or str(error).partition("\n")[0]
    return f"cannot be read: {reason}"


def _compile(row: store.MerchantRow) -> tuple[MerchantEntry, TrackingTemplate | None]:
    merchant = MerchantEntry(row.merchant_id, row.slug, row.name, _fallback_of(row))
    try:
        return merchant, parse_template(row.tracking_template)
    except TemplateInvalid as error:
        # Imports refuse such a template; somebody wrote it with SQL.
        _log.error("offers left out: bad tracking template", merchant=row.slug, error=str(error))
        return merchant, None


def _fallback_of(row: store.MerchantRow) -> str | None:
    """The fallback page as it may stand in a header, where granian drops what is not ASCII."""
    if row.fallback_url is None:
        return None
    problem = url_problem(row.fallback_url)
    if problem is not None:
        _log.error("fallback page left out: it " + problem, merchant=row.slug)
        return None
    return quote(row.fallback_url, safe=_KEPT)
