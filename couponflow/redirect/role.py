"""The `redirect` role: serves tracked links and forwards what it journalled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anyio
import structlog
from anyio import to_thread

from couponflow.config import RedirectSettings
from couponflow.kernel.channel import Channel
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.http_granian_fast import serve_fast
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.journal import Journal
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.messages import Click
from couponflow.redirect.adapters import AsgiAdapter, RsgiAdapter
from couponflow.redirect.catalogue_mirror import CatalogueMirror
from couponflow.redirect.client_address import ClientAddress
from couponflow.redirect.forwarder import Forwarder
from couponflow.redirect.http import RedirectRoutes
from couponflow.redirect.metrics import RedirectMetrics
from couponflow.redirect.offers import OfferTable
from couponflow.redirect.rate_limit import RateLimit
from couponflow.redirect.resolver import Resolver
from couponflow.redirect.stats import StatsReader
from couponflow.redirect.verdict import VerdictJudge

NAME = "redirect"
PREPARE_SECONDS = 0.1
_log = structlog.get_logger("couponflow.redirect")


@dataclass(frozen=True, slots=True)
class RedirectParts:
    """What the role is built from; opened by the daemon, which also closes it."""

    settings: RedirectSettings
    fsync_seconds: float
    trusted_proxies: tuple[str, ...]
    listener: Listener
    journal: Journal
    channel: Channel[Click]
    database: Database
    health: HealthBoard
    metrics: RedirectMetrics
    clock: Clock


def redirect_role(parts: RedirectParts) -> Role:
    return Role(NAME, Stage.INTAKE, partial(_run, parts))


async def _run(parts: RedirectParts, handle: RoleHandle) -> None:
    """Serve until told to stop; then close the port, and hand over what the journal holds."""
    routes, mirror = _build(parts)
    forwarder = Forwarder(parts.journal, parts.channel, parts.metrics)
    port_closed = anyio.Event()

    async def forward() -> None:
        await forwarder.run(port_closed)
        upkeep.cancel_scope.cancel()

    parts.health.add_probe("journal", partial(_check_journal, parts))
    async with anyio.create_task_group() as upkeep:
        upkeep.start_soon(mirror.run)
        upkeep.start_soon(_keep, PREPARE_SECONDS, parts.journal.prepare_segment)
        if parts.fsync_seconds:
            upkeep.start_soon(_keep, parts.fsync_seconds, parts.journal.sync)
        upkeep.start_soon(forward)
        await _serve(parts, routes, handle)
        port_closed.set()


def _build(parts: RedirectParts) -> tuple[RedirectRoutes, CatalogueMirror]:
    settings = parts.settings
    offers: OfferTable = {}
    resolver = Resolver(
        offers,
        parts.clock,
        Uuid7Generator(),
        ClientAddress(parts.trusted_proxies),
        RateLimit(settings.rate_limit_per_minute),
        VerdictJudge(settings.duplicate_window_seconds),
    )

    def catalogue_complete() -> None:
        resolver.catalogue_complete = True

    mirror = CatalogueMirror(
        offers,
        parts.database,
        parts.health,
        parts.clock,
        poll_seconds=settings.poll_seconds,
        stale_seconds=settings.cache_seconds,
        on_complete=catalogue_complete,
    )
    stats = StatsReader(parts.database, parts.clock)
    routes = RedirectRoutes(
        resolver, parts.journal, parts.metrics, stats, settings.stats_token, parts.health
    )
    return routes, mirror


async def _serve(parts: RedirectParts, routes: RedirectRoutes, handle: RoleHandle) -> None:
    stopping, started = handle.stopping, handle.started
    if parts.listener.server == "granian":
        await serve_fast(RsgiAdapter(routes), parts.listener, stopping=stopping, started=started)
    else:
        await serve(AsgiAdapter(routes), parts.listener, stopping=stopping, started=started)


async def _keep(interval_seconds: float, upkeep: Callable[[], None]) -> None:
    """Do the journal's disk work in a worker thread, again and again."""
    while True:
        await to_thread.run_sync(upkeep)
        await anyio.sleep(interval_seconds)


def _check_journal(parts: RedirectParts) -> tuple[bool, str]:
    journal = parts.journal.statistics()
    if journal.full:
        return False, f"full: {parts.metrics.unrecorded} clicks redirected without a record"
    return True, f"{journal.backlog_bytes} bytes waiting"
