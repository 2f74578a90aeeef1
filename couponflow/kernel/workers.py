"""The lease a daemon works under, and what becomes of the messages of one that died.

All messages a daemon has begun are owned by its incarnation, a row in `workers`. One heartbeat
renews that one row. When it has not been renewed for `lease_seconds`, any other daemon ends it and
frees the messages; the incarnation can never come back, so a daemon that slept through its lease
begins anew under another id, and whatever it still writes under the old one is refused.
"""

import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anyio
import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from couponflow import __version__
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database, DatabaseAway, load_queries
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator, is_canonical_uuid
from couponflow.kernel.outbox_rows import free_lapsed, release_all

CHECK = "worker:lease"
MISSING_CHECK = "workers:missing"
MISSING_SECONDS = 300.0
"""A worker unseen for so long is reported."""
LEAVE_SECONDS = 2.0

_TROUBLE = (DatabaseAway, psycopg.OperationalError)
_log = structlog.get_logger("couponflow.workers")
_queries = load_queries("workers")


def _do_nothing() -> None:
    """What happens when a message was freed, unless somebody wants to know."""


class WorkerLease:
    """This daemon's place among the workers.

    `worker_id` changes when the lease was lost. `on_freed` is called when messages of a dead
    worker are due again.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        health: HealthBoard,
        *,
        roles: Sequence[str],
        lease_seconds: float,
        var_path: Path,
        ids: Uuid7Generator,
        on_freed: Callable[[], None] = _do_nothing,
    ) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.worker_id = ""
        """Empty until the first lease, and while a new one is asked for."""
        self.jobs_done = 0
        self.missing = 0
        """Workers unseen for five minutes, as last counted."""
        self.on_freed = on_freed
        self.in_hand: set[str] = set()
        """The ids of messages that this daemon has, or may get any moment."""
        self.alone = anyio.Lock()
        """Held by the one message at work, of all channels, over which a worker died before."""
        self._database = database
        self._clock = clock
        self._health = health
        self._roles = list(roles)
        self._lease_seconds = lease_seconds
        self._ids = ids
        self._place = _Place(var_path)
        self._former_ids: set[str] = set()
        self._renewed_at = 0.0
        self._renewed_since = 0.0
        """Since when PostgreSQL has answered in time."""
        self._counted_at = 0.0
        self._counted = 0

    async def run(self, stopping: anyio.Event) -> None:
        """Keep the lease until told to stop, and end those that have run out."""
        with self._place:
            try:
                while not stopping.is_set():
                    await self._beat()
                    with anyio.move_on_after(self._lease_seconds / 4):
                        await stopping.wait()
            finally:
                with anyio.move_on_after(LEAVE_SECONDS, shield=True):
                    await self._leave()

    def collect(self) -> Iterable[Metric]:
        """For /metrics."""
        missing = GaugeMetricFamily(
            "couponflow_workers_missing", "Workers of the installation unseen for five minutes."
        )
        missing.add_metric([], self.missing)
        return (missing,)

    async def _beat(self) -> None:
        try:
            if self.worker_id:
                await self._renew()
            if not self.worker_id:
                await self._register()
            await self._end_others()
        except _TROUBLE as error:
            # Others could not renew theirs either: they get a whole lease after the outage.
            self._renewed_since = self._clock.monotonic()
            self._health.report(CHECK, False, f"the lease is not renewed: {error}")
        else:
            self._health.report(CHECK, True, self.worker_id)

    async def _register(self) -> None:
        worker_id = self._ids.make(self._clock.now())
        self._renewed_at = self._renewed_since = self._counted_at = self._clock.monotonic()
        async with self._database.transaction() as connection:
            # Nobody else holds the folder's lock, so whoever wrote the id there is dead.
            predecessors = sorted(self._former_ids | ({self._place.worker_id()} - {""}))
            self._former_ids.add(worker_id)  # in case nobody hears that this was committed
            await connection.execute(_queries["expire"], {"ids": predecessors})
            await connection.execute(
                _queries["register"],
                {
                    "id": worker_id,
                    "name": self.name,
                    "roles": self._roles,
                    "version": __version__,
                    "lease_seconds": self._lease_seconds,
                },
            )
            freed = await free_lapsed(connection) if predecessors else 0
            # This one has taken its place: it is not missing.
            await connection.execute(_queries["leave"], {"ids": predecessors})
        self._place.write(worker_id)
        self.worker_id = worker_id
        self._former_ids.clear()
        _log.info("worker registered", worker=worker_id, freed=freed)
        self.on_freed()

    async def _renew(self) -> None:
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                _queries["renew"],
                {
                    "id": self.worker_id,
                    "lease_seconds": self._lease_seconds,
                    "jobs_done": self.jobs_done,
                    "jobs_per_minute": self._jobs_per_minute(),
                },
            )
            if await cursor.fetchone() is None:
                _log.error("lease lost: this worker was taken for dead", worker=self.worker_id)
                self._former_ids.add(self.worker_id)
                self.worker_id = ""
        now, before = self._clock.monotonic(), self._renewed_at
        self._renewed_at = now
        if now - before > self._lease_seconds / 2:
            # Whatever held this renewal up may hold up those of the others.
            self._renewed_since = now

    def _jobs_per_minute(self) -> float:
        now = self._clock.monotonic()
        seconds, done = now - self._counted_at, self.jobs_done - self._counted
        self._counted_at, self._counted = now, self.jobs_done
        return done * 60 / seconds if seconds > 0 else 0.0

    async def _end_others(self) -> None:
        """Free what dead workers had, unless PostgreSQL itself was away within the last lease."""
        freed = 0
        async with self._database.transaction() as connection:
            if self._clock.monotonic() - self._renewed_since >= self._lease_seconds:
                cursor = await connection.execute(_queries["expire_silent"], {"id": self.worker_id})
                for (name,) in await cursor.fetchall():
                    _log.error("worker died: its lease has run out", worker=name)
            freed = await free_lapsed(connection)
            await connection.execute(_queries["forget_expired"])
            cursor = await connection.execute(
                _queries["list_missing"], {"missing_seconds": MISSING_SECONDS}
            )
            missing = await cursor.fetchall()
        self.missing = len(missing)
        names = ", ".join(f"{name} ({', '.join(roles)})" for _, name, roles, _ in missing)
        self._health.report(
            MISSING_CHECK, not missing, f"unseen for 5 minutes: {names}" if missing else ""
        )
        if freed:
            _log.warning("messages of dead workers are due again", messages=freed)
            self.on_freed()

    async def _leave(self) -> None:
        if not self.worker_id:
            return
        try:
            async with self._database.transaction() as connection:
                await release_all(connection, self.worker_id)
                await connection.execute(_queries["leave"], {"ids": [self.worker_id]})
            self._place.write("")
            self.worker_id = ""
        except _TROUBLE as error:
            _log.warning("the lease is left to run out", error=str(error))


class _Place:
    """The var folder's memory of who worked in it last.

    While its lock is held nobody else works in the folder, so the next daemon there need not wait
    for the lease of the last. A daemon that does not get the lock waits like any other.
    """

    def __init__(self, var_path: Path) -> None:
        self._path = var_path / "worker.id"
        self._file: int | None = None

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
        else:
            self._file = file

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def worker_id(self) -> str:
        if self._file is None:
            return ""
        text = os.pread(self._file, 36, 0).decode(errors="replace")
        return text if is_canonical_uuid(text) else ""

    def write(self, worker_id: str) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, worker_id.encode(), 0)
