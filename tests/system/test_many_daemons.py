"""Several daemons on one PostgreSQL, with and without one Redis, as one installation."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import msgspec
import pytest

from couponflow.roles import parse_roles
from tests.redis_server import RedisCluster, ask
from tests.system.api import caller
from tests.system.daemon_process import SETTLE_SECONDS, DaemonProcess
from tests.system.load import load, sample_paths
from tests.system.mail import IMPATIENT, Sender, quiescent, told_once
from tests.system.traffic import all_is_well, nothing_was_lost, ready_names, traffic
from tests.system.waiting import until

LIMIT = 50
CONNECTIONS = 2
OVERSHOOT_SECONDS = 1.0
"""Longer than one daemon needs to learn what the other has allowed."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class WorkerShown(msgspec.Struct):
    """A worker as `/api/v1/health/workers` shows it."""

    id: str
    name: str
    roles: list[str]
    state: str
    heartbeat: dict[str, str] | None


class WorkersShown(msgspec.Struct):
    workers: list[WorkerShown]
    heartbeats: str

    def states(self) -> dict[str, str]:
        return {worker.id: worker.state for worker in self.workers}


async def workers(client: httpx2.AsyncClient) -> WorkersShown:
    answer = await client.get("/api/v1/health/workers")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=WorkersShown)


@asynccontextmanager
async def installation(
    var: Path, environment: dict[str, str], roles: Sequence[str]
) -> AsyncIterator[list[DaemonProcess]]:
    """Daemons on one database, the first of which has made its tables and its offers."""
    async with AsyncExitStack() as stack:
        daemons = []
        for number, own in enumerate(roles):
            daemon = DaemonProcess(
                var.with_name(f"var-{number}"),
                roles=own,
                demo=number == 0,
                environment={**IMPATIENT, **environment},
            )
            await stack.enter_async_context(daemon)
            await daemon.start()
            daemons.append(daemon)
        yield daemons


async def every_worker_is_alive(daemon: DaemonProcess, count: int) -> None:
    async def alive() -> bool:
        rows = await daemon.rows("select count(*) from workers where expired_at is null")
        return rows == [(count,)]

    await until(alive, seconds=SETTLE_SECONDS)


async def test_daemons_share_the_messages_and_take_over_from_one_that_is_killed(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str]
) -> None:
    environment = {**empty_database, **carrier}
    async with installation(var, environment, ["all", "workers", "workers"]) as daemons:
        first = daemons[0]
        await every_worker_is_alive(first, 3)
        sender = Sender(first.database_url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.keep_sending)
            await sender.send(600, batch=100)
            await daemons[1].kill()
            await sender.send(300, batch=100)
            tasks.cancel_scope.cancel()
        await quiescent(first)
        await told_once(first, sender.message_ids)
        await every_worker_is_alive(first, 2)
        # Each worker says how much it has done; both that are left did some.
        for daemon in (first, daemons[2]):
            counted = await daemon.metrics()
            done = 'couponflow_messages_total{channel="emails",outcome="done"}'
            assert counted[done] > 0
        await first.audit()


async def test_redirects_and_workers_in_daemons_of_their_own_over_redis(
    var: Path, empty_database: dict[str, str], redis_url: str, randomness: random.Random
) -> None:
    environment = {**empty_database, "REDIS_URL": redis_url}
    async with installation(var, environment, ["redirect,api", "workers"]) as daemons:
        front, back = daemons
        async with load(front.redirect_port, sample_paths(randomness)) as log:
            await log.more(200)
            # Without workers clicks wait in Redis, and shoppers do not notice.
            await back.kill()
            await log.more(200)
            await back.start()
            await log.more(100)
        async with caller(front) as client:
            for number in range(10):
                email = {"to": f"reader{number}@mail.example", "subject": "Hello", "text": "!"}
                answer = await client.post("/api/v1/queue/emails", json=email)
                assert answer.status_code == 202, answer.text
        assert log.failures == {}
        await front.stored(log.click_ids)
        await quiescent(front)
        assert await front.rows("select count(*) from notifications") == [(10,)]
        for daemon in daemons:
            await all_is_well(daemon)
            await daemon.audit()


async def test_a_pause_reaches_every_daemon_and_so_does_its_end(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str]
) -> None:
    async with installation(var, {**empty_database, **carrier}, ["all", "workers"]) as daemons:
        first = daemons[0]
        assert (await first.command("queue", "pause", "emails")).code == 0
        for daemon in daemons:
            await paused(daemon)
        sender = Sender(first.database_url)
        await sender.send(90, batch=30)

        async def sms_are_told() -> bool:
            rows = await first.rows("select count(*) from notifications where channel = 'sms'")
            return rows == [(30,)]

        await until(sms_are_told)
        told = await first.rows("select channel, count(*) from notifications group by channel")
        assert told == [("sms", 30)]
        # From the other daemon's side.
        assert (await daemons[1].command("queue", "resume", "emails")).code == 0
        await quiescent(first)
        await told_once(first, sender.message_ids)
        await first.audit()


async def paused(daemon: DaemonProcess) -> None:
    """Return when the daemon has heard that emails are paused."""

    async def knows() -> bool:
        check = (await daemon.readiness()).checks["consumer:emails"]
        assert check.ok
        return "paused" in check.detail

    await until(knows)


async def test_a_worker_that_vanished_is_late_then_missing_until_it_is_forgotten(
    var: Path, empty_database: dict[str, str], redis_url: str
) -> None:
    environment = {**empty_database, "REDIS_URL": redis_url}
    async with (
        installation(var, environment, ["all", "workers"]) as (first, second),
        caller(first) as client,
    ):
        await every_worker_is_alive(first, 2)
        shown = await workers(client)
        assert shown.heartbeats == "read"
        assert {worker.state for worker in shown.workers} == {"alive"}
        assert {tuple(worker.roles) for worker in shown.workers} == {
            parse_roles("all", in_memory=False),
            parse_roles("workers", in_memory=False),
        }
        (gone,) = (worker.id for worker in shown.workers if "api" not in worker.roles)
        await second.kill()

        async def late() -> bool:
            return (await workers(client)).states()[gone] == "late"

        await until(late)
        assert (await first.metrics())["couponflow_workers_missing"] == 0
        await first.rows(
            f"update workers set seen_at = seen_at - interval '5 minutes' where id = '{gone}'"
        )
        await ready_names(first, "workers:missing")
        assert (await workers(client)).states()[gone] == "missing"
        detail = (await first.readiness()).checks["workers:missing"].detail
        assert detail.startswith("unseen for 5 minutes: ")
        assert detail.endswith(f"({', '.join(parse_roles('workers', in_memory=False))})")
        assert (await first.metrics())["couponflow_workers_missing"] == 1
        await first.audit()


async def test_the_rate_limit_of_redirects_is_shared_over_redis(
    var: Path, empty_database: dict[str, str], redis_url: str, randomness: random.Random
) -> None:
    environment = {
        **empty_database,
        "REDIS_URL": redis_url,
        "COUPONFLOW_REDIRECT_RATE_LIMIT_PER_MINUTE": str(LIMIT),
    }
    async with installation(var, environment, ["all", "all"]) as (first, second):
        paths = sample_paths(randomness)
        pause_seconds = 0.05
        async with (
            load(
                first.redirect_port, paths, connections=CONNECTIONS, pause_seconds=pause_seconds
            ) as one,
            load(
                second.redirect_port, paths, connections=CONNECTIONS, pause_seconds=pause_seconds
            ) as other,
        ):

            async def both_refuse() -> bool:
                return one.statuses[429] > 0 and other.statuses[429] > 0

            await until(both_refuse)
        assert set(one.statuses) | set(other.statuses) == {302, 429}
        allowed = len(one.click_ids) + len(other.click_ids)
        # Each counts for itself what the other has not shared yet.
        overshoot = 2 * CONNECTIONS * OVERSHOOT_SECONDS / pause_seconds
        assert LIMIT <= allowed < min(2 * LIMIT, LIMIT + overshoot)
        await first.stored(one.click_ids + other.click_ids)


async def test_two_daemons_on_a_redis_cluster_lose_nothing_when_a_node_forgets(
    var: Path,
    empty_database: dict[str, str],
    redis_cluster_url: str,
    shared_redis_cluster: RedisCluster,
    randomness: random.Random,
) -> None:
    environment = {
        **empty_database,
        "REDIS_URL": redis_cluster_url,
        "COUPONFLOW_REDIS_CLUSTER": "true",
        "COUPONFLOW_JOURNAL_CHECKPOINT": "acknowledged",
    }
    async with installation(var, environment, ["all", "workers"]) as (first, second):
        async with traffic(first, randomness) as seen:
            for node in shared_redis_cluster.nodes:
                await seen.more()
                await seen.sender.send(100, batch=100)
                assert await ask(node.port, "FLUSHALL") == "+OK"
            await seen.more()
        await nothing_was_lost(seen)
        await all_is_well(second)
