import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.migrations import migrate
from couponflow.kernel.workers import CHECK, MISSING_CHECK, WorkerLease
from tests.kernel.outboxes import (
    OTHER_WORKER,
    claim,
    expire,
    message_id,
    places,
    publish_emails,
    register,
    select,
    until_rows,
)
from tests.postgres_server import PostgresServer
from tests.samples import until

LEASE_SECONDS = 0.2
LONG_SECONDS = 60.0


def make_lease(
    database: Database,
    var_path: Path,
    clock: ManualClock | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> WorkerLease:
    clock = clock or ManualClock()
    return WorkerLease(
        database,
        clock,
        HealthBoard(clock),
        roles=["email", "sms"],
        lease_seconds=lease_seconds,
        var_path=var_path,
        ids=Uuid7Generator(),
    )


@contextlib.asynccontextmanager
async def running(lease: WorkerLease) -> AsyncIterator[None]:
    """Run a lease for the block, from when it is registered; then it leaves in order."""
    stopping = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lease.run, stopping)
        await until(lambda: bool(lease.worker_id))
        yield
        stopping.set()


async def test_a_worker_is_known_while_it_runs_and_forgotten_when_it_leaves(
    database: Database, tmp_path: Path
) -> None:
    lease = make_lease(database, tmp_path)
    async with running(lease):
        assert await select(database, "select id::text, name, roles, jobs_done from workers") == [
            (lease.worker_id, lease.name, ["email", "sms"], 0)
        ]
        assert (tmp_path / "worker.id").read_text() == lease.worker_id
    assert await select(database, "select id from workers") == []
    assert (tmp_path / "worker.id").read_text() == ""
    assert lease.worker_id == ""


async def test_a_lease_is_renewed_and_its_work_is_told(database: Database, tmp_path: Path) -> None:
    clock = ManualClock()
    lease = make_lease(database, tmp_path, clock)
    async with running(lease):
        [(first,)] = await select(database, "select lease_until from workers")
        lease.jobs_done = 30
        clock.advance(60)
        await until_rows(database, "select jobs_done from workers", (30,))
        [(later, in_future)] = await select(
            database, "select lease_until, lease_until > now() from workers"
        )
        assert isinstance(first, type(later))
        assert in_future is True
        assert str(later) > str(first)


async def test_jobs_are_counted_by_the_minute(database: Database, tmp_path: Path) -> None:
    clock = ManualClock()
    lease = make_lease(database, tmp_path, clock, LONG_SECONDS)
    lease.jobs_done = 7
    async with running(lease):
        lease.jobs_done = 37
        clock.advance(30)
        await lease._renew()
        [row] = await select(database, "select jobs_done, jobs_per_minute from workers")
    assert row == (37, 74.0)


async def test_a_lost_lease_begins_a_new_incarnation(database: Database, tmp_path: Path) -> None:
    lease = make_lease(database, tmp_path)
    async with running(lease):
        lost = lease.worker_id
        await expire(database, lost)
        await until(lambda: lease.worker_id not in ("", lost))
        # Its old self is not missing: it is here.
        assert await select(database, "select id::text from workers") == [(lease.worker_id,)]
        assert (tmp_path / "worker.id").read_text() == lease.worker_id


async def test_what_a_lost_incarnation_had_is_free(database: Database, tmp_path: Path) -> None:
    await publish_emails(database, 1)
    freed = 0

    def count() -> None:
        nonlocal freed
        freed += 1

    lease = make_lease(database, tmp_path)
    async with running(lease):
        await claim(database, owner=lease.worker_id)
        lease.on_freed = count
        await expire(database, lease.worker_id)
        await until_rows(database, "select owner, lapsed from outbox", (None, True))
        await until(lambda: freed > 0)


async def test_a_silent_worker_is_ended_after_a_lease_and_its_messages_are_freed(
    database: Database, tmp_path: Path
) -> None:
    clock = ManualClock()
    await register(database, OTHER_WORKER, lease_seconds=-1)
    await publish_emails(database, 1)
    await claim(database, owner=OTHER_WORKER)
    lease = make_lease(database, tmp_path, clock, LONG_SECONDS)
    async with running(lease):
        # Whoever has just come cannot know for how long PostgreSQL was away for the others.
        await lease._beat()
        assert await select(database, "select 1 from workers where expired_at is not null") == []
        clock.advance(LONG_SECONDS / 4)
        await lease._beat()
        clock.advance(LONG_SECONDS / 2)
        await lease._beat()
        assert [place[1] for place in await places(database)] == [OTHER_WORKER]
        clock.advance(LONG_SECONDS / 4)
        await lease._beat()
        assert [(place[1], place[6]) for place in await places(database)] == [(None, True)]
    assert await select(database, "select id::text from workers where expired_at is not null") == [
        (OTHER_WORKER,)
    ]


async def test_a_worker_that_lives_is_not_ended(database: Database, tmp_path: Path) -> None:
    clock = ManualClock()
    await register(database, OTHER_WORKER, lease_seconds=3600)
    lease = make_lease(database, tmp_path, clock, LONG_SECONDS)
    async with running(lease):
        for _ in range(6):
            clock.advance(LONG_SECONDS / 4)
            await lease._beat()
        assert await select(database, "select 1 from workers where expired_at is not null") == []


async def test_nobody_is_ended_by_one_that_slept_itself(database: Database, tmp_path: Path) -> None:
    clock = ManualClock()
    lease = make_lease(database, tmp_path, clock, LONG_SECONDS)
    async with running(lease):
        await register(database, OTHER_WORKER, lease_seconds=-1)
        # PostgreSQL, or this machine, stood still for longer than a lease, and so did the others.
        clock.advance(LONG_SECONDS * 2)
        await lease._beat()
        assert await select(database, "select 1 from workers where expired_at is not null") == []
        for _ in range(4):
            clock.advance(LONG_SECONDS / 4)
            await lease._beat()
        assert await select(
            database, "select id::text from workers where expired_at is not null"
        ) == [(OTHER_WORKER,)]


async def test_nobody_is_ended_right_after_an_outage(
    stoppable_postgres: PostgresServer, tmp_path: Path
) -> None:
    await migrate(stoppable_postgres.url)
    clock = ManualClock()
    settings = DatabaseSettings(connect_timeout_seconds=0.5)
    async with open_database(stoppable_postgres.url, settings) as database:
        lease = make_lease(database, tmp_path, clock, LONG_SECONDS)
        async with running(lease):
            await register(database, OTHER_WORKER, lease_seconds=-1)
            for _ in range(3):
                clock.advance(LONG_SECONDS / 4)
                await lease._beat()
            await stoppable_postgres.stop()
            clock.advance(LONG_SECONDS / 4)
            await lease._beat()
            check = lease._health.snapshot().checks[CHECK]
            assert not check.ok
            assert check.detail.startswith("the lease is not renewed: PostgreSQL is away")
            await stoppable_postgres.start()
            assert await database.reachable()
            clock.advance(LONG_SECONDS / 4)
            await lease._beat()
            assert lease._health.snapshot().checks[CHECK].ok
            assert (
                await select(database, "select 1 from workers where expired_at is not null") == []
            )


async def test_a_predecessor_in_the_same_folder_is_ended_at_once(
    database: Database, tmp_path: Path
) -> None:
    await register(database, OTHER_WORKER, lease_seconds=3600)
    await publish_emails(database, 1)
    await claim(database, owner=OTHER_WORKER)
    (tmp_path / "worker.id").write_text(OTHER_WORKER)
    lease = make_lease(database, tmp_path, None, LONG_SECONDS)
    async with running(lease):
        assert [(place[1], place[6]) for place in await places(database)] == [(None, True)]
        # Its place is taken, so it is nobody's concern any more.
        assert await select(database, "select id::text from workers") == [(lease.worker_id,)]


async def test_a_folder_that_holds_nonsense_names_nobody(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "worker.id").write_bytes(b"\xff\x00 not an id")
    await register(database, OTHER_WORKER)
    lease = make_lease(database, tmp_path)
    async with running(lease):
        assert await select(database, "select count(*) from workers") == [(2,)]


async def test_of_two_daemons_on_one_folder_the_second_ends_nobody(
    database: Database, tmp_path: Path
) -> None:
    first = make_lease(database, tmp_path, None, LONG_SECONDS)
    second = make_lease(database, tmp_path, None, LONG_SECONDS)
    async with running(first):
        async with running(second):
            assert (tmp_path / "worker.id").read_text() == first.worker_id
            assert await select(
                database, "select count(*) from workers where expired_at is null"
            ) == [(2,)]
        assert (tmp_path / "worker.id").read_text() == first.worker_id


async def test_a_clean_leave_gives_everything_back(database: Database, tmp_path: Path) -> None:
    await publish_emails(database, 2)
    lease = make_lease(database, tmp_path)
    async with running(lease):
        await claim(database, 1, owner=lease.worker_id)
        await claim(database, 1, owner=lease.worker_id, begun=False)
    assert await places(database) == [
        (message_id(n), None, False, None, 0, 2, False, []) for n in (1, 2)
    ]


async def test_a_cancelled_worker_leaves_in_order_too(database: Database, tmp_path: Path) -> None:
    await publish_emails(database, 1)
    lease = make_lease(database, tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(lease.run, anyio.Event())
        await until(lambda: bool(lease.worker_id))
        await claim(database, owner=lease.worker_id)
        group.cancel_scope.cancel()
    assert [place[1] for place in await places(database)] == [None]
    assert await select(database, "select id from workers") == []


@pytest.mark.parametrize(("unseen_seconds", "missing"), [(299, 0), (301, 1)])
async def test_a_worker_unseen_for_five_minutes_is_reported(
    database: Database, tmp_path: Path, unseen_seconds: int, missing: int
) -> None:
    await register(database, OTHER_WORKER, lease_seconds=3600)
    async with database.connection() as connection:
        await connection.execute(
            "update workers set seen_at = now() - %s * interval '1 second'", [unseen_seconds]
        )
    lease = make_lease(database, tmp_path, None, LONG_SECONDS)
    async with running(lease):
        await until(lambda: MISSING_CHECK in lease._health.snapshot().checks)
        check = lease._health.snapshot().checks[MISSING_CHECK]
        assert (lease.missing, check.ok) == (missing, not missing)
        assert check.detail == ("unseen for 5 minutes: host:2 (email)" if missing else "")
        [metric] = lease.collect()
        assert [sample.value for sample in metric.samples] == [missing]


async def test_a_worker_that_vanished_yesterday_is_forgotten(
    database: Database, tmp_path: Path
) -> None:
    await register(database, OTHER_WORKER)
    async with database.connection() as connection:
        await connection.execute(
            "update workers set expired_at = now() - interval '25 hours',"
            " seen_at = now() - interval '25 hours'"
        )
    lease = make_lease(database, tmp_path, None, LONG_SECONDS)
    async with running(lease):
        await until(lambda: MISSING_CHECK in lease._health.snapshot().checks)
        assert await select(database, "select id::text from workers") == [(lease.worker_id,)]
        assert lease.missing == 0
