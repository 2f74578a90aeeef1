import anyio
import httpx2
import pytest

from couponflow.admin.http import AdminParts, admin_routes
from couponflow.admin.role import ApiParts, api_role
from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, ServerName, free_port
from couponflow.kernel.ops import Queues
from couponflow.kernel.role import Stage
from couponflow.kernel.telemetry import new_registry
from tests.kernel.api_client import SERVICE, make_id, problem_of, tokens
from tests.samples import PATIENCE_SECONDS

EMAIL = {"to": "mira@example.com", "subject": "Hello", "text": "Your cashback is here."}


class FakeHandle:
    """The supervisor's side of a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.up = anyio.Event()

    def started(self) -> None:
        self.up.set()


def parts_with(database: Database, server: ServerName) -> ApiParts:
    clock = SystemClock()
    queues = Queues([])
    return ApiParts(
        listener=Listener("127.0.0.1", free_port("127.0.0.1"), server),
        routes=admin_routes(AdminParts(database, queues)),
        registry=new_registry([queues]),
        health=HealthBoard(clock),
        required=("database",),
        queues=queues,
        tokens=tokens(),
        clock=clock,
        make_id=make_id,
    )


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
async def test_it_serves_programs_and_operators(database: Database, server: ServerName) -> None:
    parts = parts_with(database, server)
    role = api_role(parts)
    handle = FakeHandle()
    assert (role.name, role.stage) == ("api", Stage.INTAKE)

    async def run() -> None:
        await role.run(handle)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await handle.up.wait()
            async with httpx2.AsyncClient(verify=False, base_url=parts.listener.local_url) as web:
                assert (await web.get("/health")).json() == {"status": "alive"}
                assert (await web.get("/ready")).status_code == 503
                parts.health.report("database", True)
                assert (await web.get("/ready")).status_code == 200
                assert (await web.get("/metrics")).status_code == 200
                assert problem_of(await web.get("/api/v1/queue/stats")).status == 401
                pushed = await web.post("/api/v1/queue/emails", json=EMAIL, headers=SERVICE)
                assert pushed.status_code == 202
                stats = await web.get("/api/v1/queue/stats", headers=SERVICE)
                assert stats.json()["channels"]["emails"]["outbox"]["due"] == 1
            handle.stopping.set()


async def test_without_a_database_it_asks_for_another_try(tmp_path: object) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    async with open_database(url, DatabaseSettings(connect_timeout_seconds=0.1)) as database:
        parts = parts_with(database, "hypercorn")
        handle = FakeHandle()

        async def run() -> None:
            await api_role(parts).run(handle)

        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await handle.up.wait()
                url = parts.listener.local_url
                async with httpx2.AsyncClient(verify=False, base_url=url) as web:
                    response = await web.post("/api/v1/queue/emails", json=EMAIL, headers=SERVICE)
                handle.stopping.set()
    assert problem_of(response).type == "urn:couponflow:problem:database-away"
    assert response.headers["retry-after"] == "1"
