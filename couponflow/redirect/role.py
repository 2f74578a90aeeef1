"""The `redirect` role: serves tracked links and forwards what it journalled."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio import to_thread

from couponflow.config import RedirectSettings
from couponflow.kernel.channel import Channel
from couponflow.kernel.client_address import ClientAddress
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.http_granian_fast import serve_fast
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.journal import Journal
from couponflow.kernel.journal_folder import JournalFolder
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.kernel.shared_state import SharedState
from couponflow.messages import Click
from couponflow.redirect.adapters import AsgiAdapter, RsgiAdapter
from couponflow.redirect.catalogue_mirror import CatalogueMirror
from couponflow.redirect.forwarder import Forwarder
from couponflow.redirect.http import RedirectRoutes
from couponflow.redirect.metrics import RedirectMetrics
from couponflow.redirect.offers import OfferTable
from couponflow.redirect.rate_limit import RateLimit
from couponflow.redirect.resolver import Resolver
from couponflow.redirect.shared_rate_limit import SharedRateLimit
from couponflow.redirect.stats import StatsReader
from couponflow.redirect.verdict import VerdictJudge

NAME = "redirect"
SYNC_CHECK = "journal:sync"
PREPARE_SECONDS = 0.1
CATALOGUE_SECONDS = 30.0
"""How long the port stays closed for want of offers; then it says 503 to what it cannot know."""
GRACE_SECONDS = 2.0
"""How long a stop waits for requests under way: answers take milliseconds, so what is left by then
is a client that never finishes its request."""
_log = structlog.get_logger("couponflow.redirect")


@dataclass(frozen=True, slots=True)
class RedirectParts:
    """What the role is built from; opened by the daemon, which also closes it."""

    settings: RedirectSettings
    fsync_seconds: float
    trusted_proxies: tuple[str, ...]
    listener: Listener
    journal: Journal
    journal_folder: Path
    channel: Channel[Click]
    database: Database
    health: HealthBoard
    metrics: RedirectMetrics
    clock: Clock
    shared: SharedState | None = None
    """What the installation's daemons know together; None counts clicks for this daemon alone."""


def redirect_role(parts: RedirectParts) -> Role:
    return Role(NAME, Stage.INTAKE, partial(_run, parts))


async def _run(parts: RedirectParts, handle: RoleHandle) -> None:
    """Serve until told to stop; then close the port, and hand over what the journal holds."""
    catalogue_complete = anyio.Event()
    limit = RateLimit(parts.settings.rate_limit_per_minute, shared=parts.shared is not None)
    routes, mirror = _build(parts, limit, catalogue_complete)
    set_aside_folder = JournalFolder(parts.journal_folder).set_aside_directory
    forwarder = Forwarder(parts.journal, parts.channel, parts.metrics, set_aside_folder)
    port_closed = anyio.Event()

    async def forward() -> None:
        await forwarder.run(port_closed)
        upkeep.cancel_scope.cancel()

    parts.health.add_probe("journal", partial(_check_journal, parts))
    async with anyio.create_task_group() as upkeep:
        upkeep.start_soon(mirror.run)
        upkeep.start_soon(_prepare_segments, parts.journal)
        if parts.fsync_seconds:
            upkeep.start_soon(_sync, parts)
        if parts.shared is not None and parts.settings.rate_limit_per_minute:
            sharing = SharedRateLimit(limit, parts.shared, parts.health, parts.clock)
            upkeep.start_soon(sharing.run)
        upkeep.start_soon(forward)
        with anyio.move_on_after(CATALOGUE_SECONDS):
            await _first_of(catalogue_complete, handle.stopping)
        await _serve(parts, routes, handle)
        port_closed.set()


def _build(
    parts: RedirectParts, limit: RateLimit, catalogue_complete: anyio.Event
) -> tuple[RedirectRoutes, CatalogueMirror]:
    settings = parts.settings
    offers: OfferTable = {}
    resolver = Resolver(
        offers,
        parts.clock,
        Uuid7Generator(),
        ClientAddress(parts.trusted_proxies),
        limit,
        VerdictJudge(settings.duplicate_window_seconds),
    )

    def on_complete() -> None:
        resolver.catalogue_complete = True
        catalogue_complete.set()

    mirror = CatalogueMirror(
        offers,
        parts.database,
        parts.health,
        parts.clock,
        poll_seconds=settings.poll_seconds,
        stale_seconds=settings.cache_seconds,
        on_complete=on_complete,
    )
    stats = StatsReader(parts.database, parts.clock)
    routes = RedirectRoutes(
        resolver,
        parts.journal,
        parts.metrics,
        stats,
        settings.stats_token,
        parts.health,
        parts.clock,
    )
    return routes, mirror


async def _first_of(one: anyio.Event, other: anyio.Event) -> None:
    """Return when either is set."""
    async with anyio.create_task_group() as tasks:

        async def watch(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch, one)
        tasks.start_soon(watch, other)


async def _serve(parts: RedirectParts, routes: RedirectRoutes, handle: RoleHandle) -> None:
    listener, stopping, started = parts.listener, handle.stopping, handle.started
    if listener.server == "granian":
        await serve_fast(
            RsgiAdapter(routes),
            listener,
            stopping=stopping,
            started=started,
            grace_seconds=GRACE_SECONDS,
        )
    else:
        await serve(
            AsgiAdapter(routes),
            listener,
            stopping=stopping,
            started=started,
            grace_seconds=GRACE_SECONDS,
        )


async def _prepare_segments(journal: Journal) -> None:
    """Make segments before they are needed, and tell what was found wrong with old ones."""
    told = 0
    while True:
        await to_thread.run_sync(journal.prepare_segment)
        findings = journal.findings[told:]
        for finding in findings:
            _log.error("journal damage", finding=str(finding))
        told += len(findings)
        await anyio.sleep(PREPARE_SECONDS)


async def _sync(parts: RedirectParts) -> None:
    """Write the journal through to the disk, again and again."""
    while True:
        try:
            await to_thread.run_sync(parts.journal.sync)
        except OSError as error:
            _log.error("journal not synced", error=str(error))
            parts.health.report(SYNC_CHECK, False, f"fsync failed: {error.strerror}")
        else:
            parts.health.report(SYNC_CHECK, True)
        await anyio.sleep(parts.fsync_seconds)


def _check_journal(parts: RedirectParts) -> tuple[bool, str]:
    journal = parts.journal.statistics()
    if journal.full:
        lost = f"{parts.metrics.unrecorded} clicks redirected without a record"
        return False, f"{journal.trouble}; {lost}"
    return True, f"{journal.backlog_bytes} bytes waiting"
