"""The `ops` role: every daemon's listener for operators, and the checks it shows."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import anyio
import psycopg
from prometheus_client import CollectorRegistry

from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.dead_letters import count_by_channel
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.ops import Queues, ops_app
from couponflow.kernel.outbox_rows import count_by_channel as count_outbox_by_channel
from couponflow.kernel.role import Role, RoleHandle, Stage

NAME = "ops"
DATABASE_CHECK = "database"
SAMPLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class OpsParts:
    """What the role is built from."""

    listener: Listener
    registry: CollectorRegistry
    health: HealthBoard
    required: Collection[str]
    queues: Queues
    depth_alarm: int
    database: Database


def ops_role(parts: OpsParts) -> Role:
    return Role(NAME, Stage.WORK, partial(_run, parts))


async def _run(parts: OpsParts, handle: RoleHandle) -> None:
    app = ops_app(parts.registry, parts.health, parts.required, parts.queues)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_sample, parts)
        await serve(
            app,
            parts.listener,
            stopping=handle.stopping,
            started=handle.started,
            grace_seconds=2.0,
        )
        tasks.cancel_scope.cancel()


async def _sample(parts: OpsParts) -> None:
    """Look at the database and the queues every few seconds, for whoever asks in between."""
    randomness = random.Random()  # noqa: S311 - keeps daemons from asking in step
    while True:
        # With millions of rows the count takes a while: at most a twentieth of the time.
        busy_seconds = await _sample_database(parts) * 20
        for name, state in (await parts.queues.sample()).items():
            # Most of what waits for a channel in memory does so in the outbox.
            depth = state.statistics.depth + parts.queues.due(name)
            parts.health.report(
                f"queue:{name}", depth < parts.depth_alarm, f"{depth} messages waiting"
            )
        pause_seconds = max(SAMPLE_SECONDS, busy_seconds)
        await anyio.sleep(pause_seconds * (0.75 + randomness.random() / 2))


async def _sample_database(parts: OpsParts) -> float:
    """Count what is in the database; for how many seconds that has kept it busy."""
    begun_at = anyio.current_time()
    try:
        async with parts.database.connection() as connection:
            parts.queues.dead_letters = await count_by_channel(connection)
            parts.queues.outbox = await count_outbox_by_channel(connection)
    except DatabaseAway as error:
        parts.health.report(DATABASE_CHECK, False, str(error))
        # Waiting for it is no work of its: it is seen soon when it is back.
        return 0.0
    except psycopg.Error as error:
        parts.health.report(DATABASE_CHECK, False, str(error))
    else:
        parts.health.report(DATABASE_CHECK, True)
    return anyio.current_time() - begun_at
