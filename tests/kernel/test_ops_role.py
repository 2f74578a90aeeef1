import anyio
import httpx2
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, ServerName, free_port
from couponflow.kernel.ops import Queues
from couponflow.kernel.ops_role import DATABASE_CHECK, OpsParts, ops_role
from couponflow.kernel.role import Stage
from couponflow.kernel.telemetry import new_registry
from couponflow.messages import Click
from tests.fault_proxy import fault_proxy, postgres_target
from tests.samples import PATIENCE_SECONDS, make_click, until

SOON_SECONDS = 8.0


class FakeHandle:
    """The supervisor's side of a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.up = anyio.Event()

    def started(self) -> None:
        self.up.set()


def parts_with(database: Database, server: ServerName = "hypercorn") -> OpsParts:
    clock = ManualClock()
    channel: MemoryChannel[Click] = MemoryChannel("clicks", 100, clock)
    return OpsParts(
        listener=Listener("127.0.0.1", free_port("127.0.0.1"), server),
        registry=new_registry([]),
        health=HealthBoard(clock),
        required=(DATABASE_CHECK,),
        queues=Queues([channel]),
        depth_alarm=2,
        database=database,
    )


@pytest.mark.parametrize("server", ["hypercorn", "granian"])
async def test_it_serves_operators_until_it_is_told_to_stop(
    database: Database, server: ServerName
) -> None:
    parts = parts_with(database, server)
    role = ops_role(parts)
    handle = FakeHandle()
    assert (role.name, role.stage) == ("ops", Stage.WORK)

    async def run() -> None:
        await role.run(handle)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await handle.up.wait()
            await until(lambda: DATABASE_CHECK in parts.health.snapshot().checks)
            async with httpx2.AsyncClient(verify=False, base_url=parts.listener.local_url) as web:
                assert (await web.get("/health")).json() == {"status": "alive"}
                assert (await web.get("/ready")).status_code == 200
            handle.stopping.set()


async def test_the_database_and_the_queues_are_looked_at(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "insert into dead_letters values (gen_random_uuid(), 'clicks', 'a', '{}', 'x', 1)"
        )
        await connection.execute(
            "insert into outbox (id, channel, message, correlation_id)"
            " values (gen_random_uuid(), 'clicks', '{}', 'c')"
        )
    clock = ManualClock()
    channel: MemoryChannel[Click] = MemoryChannel("clicks", 100, clock)
    await channel.publish([make_click(1), make_click(2)])
    parts = parts_with(database)
    queues = Queues([channel])
    parts = OpsParts(parts.listener, parts.registry, parts.health, (), queues, 2, parts.database)
    handle = FakeHandle()

    async def run() -> None:
        await ops_role(parts).run(handle)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(lambda: "queue:clicks" in parts.health.snapshot().checks)
        tasks.cancel_scope.cancel()
    checks = parts.health.snapshot().checks
    assert checks[DATABASE_CHECK].ok
    assert (checks["queue:clicks"].ok, checks["queue:clicks"].detail) == (
        False,
        "3 messages waiting",
    )
    assert queues.dead_letters == {"clicks": 1}


async def test_without_a_database_it_serves_and_says_so(tmp_path: object) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    async with open_database(url, DatabaseSettings(connect_timeout_seconds=0.1)) as database:
        parts = parts_with(database)
        handle = FakeHandle()

        async def run() -> None:
            await ops_role(parts).run(handle)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await until(lambda: DATABASE_CHECK in parts.health.snapshot().checks)
            async with httpx2.AsyncClient(verify=False, base_url=parts.listener.local_url) as web:
                response = await web.get("/ready")
            tasks.cancel_scope.cancel()
    assert response.status_code == 503
    assert "PostgreSQL is away" in response.json()["checks"][DATABASE_CHECK]["detail"]


async def test_a_database_that_was_away_is_seen_soon_when_it_is_back(database_url: str) -> None:
    settings = DatabaseSettings(connect_timeout_seconds=1)
    async with fault_proxy(*postgres_target(database_url)) as proxy:
        proxy.refuse()
        async with open_database(proxy.postgres_url(database_url), settings) as database:
            parts = parts_with(database)

            async def run() -> None:
                await ops_role(parts).run(FakeHandle())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await until(lambda: DATABASE_CHECK in parts.health.snapshot().checks)
                assert not parts.health.snapshot().checks[DATABASE_CHECK].ok
                proxy.heal()
                with anyio.fail_after(SOON_SECONDS):
                    await until(lambda: parts.health.snapshot().checks[DATABASE_CHECK].ok)
                tasks.cancel_scope.cancel()
