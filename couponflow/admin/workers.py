"""Who works in the installation, and who has not been heard of."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import structlog

from couponflow.admin.store import Worker, list_workers
from couponflow.kernel.database import Database
from couponflow.kernel.shared_state import Heartbeat, SharedState, SharedStateAway
from couponflow.kernel.workers import MISSING_SECONDS

_log = structlog.get_logger("couponflow.admin")


class WorkerSeen(Worker, frozen=True):
    """A worker, and what its heartbeat says."""

    heartbeat: Mapping[str, str] | None = None
    """None when Redis has none of it."""


class Workers(msgspec.Struct, frozen=True):
    """Every worker that has not left in order."""

    workers: list[WorkerSeen]
    heartbeats: Literal["read", "redis-away", "no-redis"]
    """Where the heartbeats beside PostgreSQL's own are."""
    only_heartbeats: list[Heartbeat]
    """Workers that Redis hears and PostgreSQL does not know: they have lost PostgreSQL."""


async def read_workers(database: Database, shared_state: SharedState | None) -> Workers:
    """PostgreSQL's list, and beside each worker its heartbeat; Redis may be away."""
    async with database.connection() as connection:
        known = await list_workers(connection, MISSING_SECONDS)
    if shared_state is None:
        return _merged(known, [], "no-redis")
    try:
        return _merged(known, await shared_state.heartbeats(), "read")
    except SharedStateAway as error:
        _log.warning("heartbeats_unread", error=str(error))
        return _merged(known, [], "redis-away")


def _merged(
    known: Sequence[Worker],
    heartbeats: Sequence[Heartbeat],
    source: Literal["read", "redis-away", "no-redis"],
) -> Workers:
    by_id = {heartbeat.worker_id: heartbeat for heartbeat in heartbeats}
    seen = []
    for worker in known:
        heartbeat = by_id.pop(worker.id, None)
        seen.append(
            WorkerSeen(
                **msgspec.structs.asdict(worker),
                heartbeat=heartbeat.details if heartbeat else None,
            )
        )
    return Workers(seen, source, list(by_id.values()))
