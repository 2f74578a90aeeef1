"""The redirector's routes over a real journal, for the tests of routes and adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from couponflow.config import DatabaseSettings, JournalSettings
from couponflow.kernel.client_address import ClientAddress
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.journal import Journal, open_journal, read_segments
from couponflow.links.tracking_template import parse_template
from couponflow.messages import Click
from couponflow.redirect.http import RedirectRoutes
from couponflow.redirect.metrics import RedirectMetrics
from couponflow.redirect.offers import MerchantEntry, OfferEntry, OfferTable
from couponflow.redirect.rate_limit import RateLimit
from couponflow.redirect.resolver import Resolver
from couponflow.redirect.stats import StatsReader
from couponflow.redirect.verdict import VerdictJudge
from tests.samples import MERCHANT_ID, OFFER_ID, OTHER_MERCHANT_ID, OTHER_OFFER_ID, TEMPLATE

SMALL = JournalSettings(segment_bytes=65_536, max_bytes=131_072)
FALLBACK = "https://aabazaar.example/sale"


def offer_table() -> OfferTable:
    """An offer of `zenmart` that is on, and one of `aabazaar` that has ended."""
    parts = parse_template(TEMPLATE).fill_url("https://shop.example/a?b=c")
    zenmart = MerchantEntry(MERCHANT_ID, "zenmart", "Zenmart", None)
    aabazaar = MerchantEntry(OTHER_MERCHANT_ID, "aabazaar", "Aabazaar", FALLBACK)
    forever = float("inf")
    return {
        OFFER_ID: OfferEntry(zenmart, parts, -forever, forever),
        OTHER_OFFER_ID: OfferEntry(aabazaar, parts, -forever, 0.0),
    }


@dataclass(frozen=True, slots=True)
class RoutesParts:
    """Routes and what they were built from."""

    routes: RedirectRoutes
    resolver: Resolver
    journal: Journal
    metrics: RedirectMetrics
    health: HealthBoard
    folder: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def journalled(self) -> list[Click]:
        return [
            msgspec.json.decode(record.payload, type=Click) for record in read_segments(self.folder)
        ]


@contextmanager
def open_routes(
    folder: Path,
    database: Database | None = None,
    *,
    stats_token: str = "",
    limit: int = 0,
) -> Iterator[RoutesParts]:
    """Routes with a journal in `folder`; without a database, `/stats` cannot be asked."""
    clock = ManualClock()
    resolver = Resolver(
        offer_table(),
        clock,
        Uuid7Generator(),
        ClientAddress(()),
        RateLimit(limit),
        VerdictJudge(60),
    )
    resolver.catalogue_complete = True
    health = HealthBoard(clock)
    database = database or Database("postgresql://nowhere.invalid/none", DatabaseSettings())
    with open_journal(folder, SMALL, clock) as journal:
        metrics = RedirectMetrics(journal)
        stats = StatsReader(database, clock)
        routes = RedirectRoutes(resolver, journal, metrics, stats, stats_token, health, clock)
        yield RoutesParts(routes, resolver, journal, metrics, health, folder, clock)
