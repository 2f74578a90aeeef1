import random
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.ops import Queues, RoleMetrics, ops_app
from couponflow.kernel.outbox_rows import OutboxCounts
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.kernel.supervisor import Supervisor
from couponflow.kernel.telemetry import new_registry
from couponflow.messages import CHANNELS, Click
from tests.samples import make_click


class Operated:
    """The application, what it looks at, and a client."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.health = HealthBoard(self.clock)
        self.channel: MemoryChannel[Click] = MemoryChannel("clicks", 100, self.clock)
        self.queues = Queues([self.channel])
        self.roles = RoleMetrics()
        registry = new_registry([self.queues, self.roles])
        app = ops_app(registry, self.health, ("role:", "database"), self.queues)
        self.client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://ops.example"
        )

    async def json(self, path: str) -> tuple[int, Any]:
        response = await self.client.get(path)
        return response.status_code, msgspec.json.decode(response.content)

    async def metric(self, name: str) -> dict[tuple[str, ...], float]:
        text = (await self.client.get("/metrics")).text
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
async def operated() -> AsyncIterator[Operated]:
    made = Operated()
    yield made
    await made.client.aclose()


async def test_the_process_is_alive(operated: Operated) -> None:
    assert await operated.json("/health") == (200, {"status": "alive"})


async def test_it_is_ready_when_every_role_and_the_database_are(operated: Operated) -> None:
    status, content = await operated.json("/ready")
    assert (status, content["status"]) == (503, "not_ready")
    operated.health.report("database", True)
    operated.health.report("role:clicks", True)
    status, content = await operated.json("/ready")
    assert (status, content["status"]) == (200, "ready")
    operated.health.report("queue:clicks", False, "15001 messages waiting")
    status, content = await operated.json("/ready")
    assert (status, content["status"]) == (200, "degraded")
    assert content["checks"]["queue:clicks"] == {
        "ok": False,
        "detail": "15001 messages waiting",
        "since": operated.clock.now(),
    }
    operated.health.report("role:clicks", False, "failing")
    assert (await operated.json("/ready"))[0] == 503


async def test_queues_are_shown_as_they_are_now(operated: Operated) -> None:
    await operated.channel.publish([make_click(n) for n in range(5)])
    operated.queues.dead_letters = {"clicks": 3, "other": 9}
    operated.clock.advance(7)
    async with operated.channel.subscribe("test") as subscription:
        await subscription.receive(2, 0.0)
        status, content = await operated.json("/api/v1/queue/stats")
        assert await operated.metric("couponflow_queue_depth") == {("clicks",): 5}
    assert status == 200
    (name,) = content["channels"]
    state = content["channels"]["clicks"]
    assert (name, state["dead_letters"]) == ("clicks", 3)
    assert state["statistics"]["depth"] == 3
    assert state["statistics"]["in_flight"] == 2
    assert state["statistics"]["oldest_seconds"] == 7
    assert await operated.metric("couponflow_queue_oldest_seconds") == {("clicks",): 7}
    assert await operated.metric("couponflow_dead_letters") == {("clicks",): 3, ("other",): 9}


async def test_an_empty_outbox_is_zeros_for_every_channel(operated: Operated) -> None:
    states = ("due", "later", "leased", "streamed")
    zeros = {(channel, state): 0.0 for channel in CHANNELS for state in states}
    assert await operated.metric("couponflow_outbox_rows") == zeros
    overdue = dict.fromkeys(((channel,) for channel in CHANNELS), 0.0)
    assert await operated.metric("couponflow_outbox_oldest_due_seconds") == overdue
    operated.queues.outbox = {
        "sms": OutboxCounts(1, 2, 3, 4, 5.5),
        "other": OutboxCounts(6, 0, 0, 0, 0.0),
    }
    rows = await operated.metric("couponflow_outbox_rows")
    assert [rows["sms", state] for state in states] == [1, 2, 3, 4]
    assert (rows["other", "due"], rows["emails", "due"]) == (6, 0)
    assert await operated.metric("couponflow_outbox_oldest_due_seconds") == {
        **overdue,
        ("sms",): 5.5,
        ("other",): 0,
    }


async def test_metrics_are_in_the_format_that_is_scraped(operated: Operated) -> None:
    response = await operated.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")


async def test_roles_are_up_or_down_in_the_metrics(operated: Operated) -> None:
    async def work(handle: RoleHandle) -> None:
        handle.started()
        await handle.stopping.wait()

    async def hang(handle: RoleHandle) -> None:
        await handle.stopping.wait()

    operated.roles.supervisor = Supervisor(
        [Role("works", Stage.WORK, work), Role("hangs", Stage.WORK, hang)],
        health=operated.health,
        clock=SystemClock(),
        randomness=random.Random(1),
        deadline_seconds=5,
    )
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(operated.roles.supervisor.run, stop)
        await anyio.wait_all_tasks_blocked()
        assert await operated.metric("couponflow_role_up") == {("works",): 1, ("hangs",): 0}
        restarts = await operated.metric("couponflow_role_restarts_total")
        assert restarts == {("works",): 0, ("hangs",): 0}
        stop.set()


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/health", 405, "method-not-allowed"),
    ],
)
async def test_anything_else_is_a_problem(
    operated: Operated, method: str, path: str, status: int, name: str
) -> None:
    response = await operated.client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:couponflow:problem:{name}"
