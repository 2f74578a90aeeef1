"""The roles `webhooks`, which takes events in, and `inbox`, which passes on what follows."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import psycopg
import structlog
from anyio.abc import TaskGroup

from couponflow.config import WebhooksSettings
from couponflow.config_sources import SourceSettings
from couponflow.kernel.client_address import ClientAddress
from couponflow.kernel.clock import Clock
from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.http_granian_fast import serve_fast
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.webhooks.adapters import AsgiAdapter, RsgiAdapter
from couponflow.webhooks.address_list import AddressList
from couponflow.webhooks.contract import Source
from couponflow.webhooks.housekeeping import Housekeeping
from couponflow.webhooks.http import Limits, WebhookRoutes
from couponflow.webhooks.intake import Gate, Intake
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.refusals import RefusalLog
from couponflow.webhooks.silence import SilenceWatch
from couponflow.webhooks.writer import EventWriter

NAME = "webhooks"
WRITERS_MAX = 2
"""One transaction gathers its events while the other is being committed."""
CONNECTIONS_A_WRITER = 3
"""Under load each holds one for good: the others of the pool are for everybody else."""
GRACE_SECONDS = 5.0
LAST_REFUSALS_SECONDS = 1.0
"""What was refused proves nothing: a stop does not wait for it longer than that."""
_REQUIRED = (f"role:{NAME}", "database")
_log = structlog.get_logger("couponflow.webhooks")


@dataclass(frozen=True, slots=True)
class WebhooksParts:
    """What the role is built from; opened by the daemon, which also closes it."""

    settings: WebhooksSettings
    sources: Mapping[str, Source]
    """By path, without its slash."""
    source_settings: Mapping[str, SourceSettings]
    """By the source's name."""
    cors: Mapping[str, Sequence[str]]
    """The origins that may call a path."""
    trusted_proxies: tuple[str, ...]
    listener: Listener
    database: Database
    database_connections: int
    """How many the database has for all roles together."""
    health: HealthBoard
    metrics: WebhookMetrics
    clock: Clock


def webhooks_role(parts: WebhooksParts) -> Role:
    return Role(NAME, Stage.INTAKE, partial(_run, parts))


def inbox_role(parts: ConsumerParts) -> Role:
    return Role("inbox", Stage.WORK, ChannelConsumers(parts).run)


async def _run(parts: WebhooksParts, handle: RoleHandle) -> None:
    """Serve until told to stop, then write down what was taken in."""
    settings, ids = parts.settings, Uuid7Generator()
    writer = EventWriter(parts.database, parts.clock, parts.metrics, settings.store_seconds)
    refusals = RefusalLog(
        parts.database, parts.clock, ids, parts.metrics, settings.refusals_kept_per_minute
    )
    housekeeping = Housekeeping(
        parts.database, parts.clock, settings.keep_days, settings.dedup_days
    )
    silence = SilenceWatch(
        {name: each.silence_seconds for name, each in parts.source_settings.items()},
        parts.database,
        parts.health,
        parts.metrics,
        parts.clock,
        off=parts.source_settings.keys() - {source.name for source in parts.sources.values()},
    )
    routes = _routes(parts, Intake(writer, refusals, ids))
    # Before anybody writes: a day whose rows are in the default partition gets none of its own.
    with contextlib.suppress(DatabaseAway, psycopg.Error):
        await housekeeping.ensure_partitions()
    async with anyio.create_task_group() as tasks:
        writers = min(WRITERS_MAX, max(1, parts.database_connections // CONNECTIONS_A_WRITER))
        tasks.start_soon(writer.run, writers)
        tasks.start_soon(refusals.run)
        tasks.start_soon(housekeeping.run)
        tasks.start_soon(silence.run)
        await _serve(parts, routes, handle, tasks)
        with anyio.move_on_after(LAST_REFUSALS_SECONDS) as last:
            await refusals.flush()
        if last.cancelled_caught:
            _log.warning("refusals not written", error="the daemon stops, PostgreSQL is too slow")
        tasks.cancel_scope.cancel()


def _routes(parts: WebhooksParts, intake: Intake) -> WebhookRoutes:
    gates: dict[str, Gate] = {}
    for source in parts.sources.values():
        settings = parts.source_settings[source.name]
        if source.name not in gates:
            gates[source.name] = Gate(
                source,
                AddressList(settings.allowed_addresses),
                settings.rate_per_second,
                parts.clock,
                parts.settings.concurrency,
            )
    return WebhookRoutes(
        {path: gates[source.name] for path, source in parts.sources.items()},
        intake,
        limits=Limits(parts.settings.body_bytes, parts.settings.body_seconds),
        cors=parts.cors,
        client_address=ClientAddress(parts.trusted_proxies),
        metrics=parts.metrics,
        health=parts.health,
        required=_REQUIRED,
        clock=parts.clock,
    )


async def _serve(
    parts: WebhooksParts, routes: WebhookRoutes, handle: RoleHandle, tasks: TaskGroup
) -> None:
    listener, stopping, started = parts.listener, handle.stopping, handle.started
    if listener.server == "granian":
        adapter = RsgiAdapter(routes, parts.clock)
        tasks.start_soon(adapter.give_up_late)
        await serve_fast(
            adapter,
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
