"""The Redis client through a network that fails in every way, and is well again in the end."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from couponflow.config import RedisSettings
from couponflow.kernel.redis_client import Redis, RedisAway, Script, open_redis
from tests.fault_proxy import FaultProxy, fault_proxy, redis_target
from tests.redis_server import ask
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, until

pytestmark = pytest.mark.once

Fault = Callable[[FaultProxy], None]

TIMEOUT_SECONDS = 0.4
MARGIN_SECONDS = 1.0
MANY = 1_000
"""Cuts, so that another connection does not take the one that counts."""
APPEND = Script("return redis.call('APPEND', KEYS[1], ARGV[1])")


@dataclass(frozen=True, slots=True)
class World:
    """A Redis behind a proxy, and the way around it."""

    port: int
    proxy: FaultProxy
    redis: Redis


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    host, port = redis_target(redis_url)
    async with fault_proxy(host, port) as proxy:
        settings = RedisSettings(url=proxy.redis_url(redis_url), timeout_seconds=TIMEOUT_SECONDS)
        async with open_redis(settings) as redis:
            await redis.call(lambda client: client.set("key", "value"))
            yield World(port, proxy, redis)
        proxy.heal()
        await until(lambda: proxy.open_connections == 0)


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """The block ends within the client's own deadline, and not by being cancelled."""
    started = time.monotonic()
    with anyio.fail_after(PATIENCE_SECONDS):
        yield
    assert time.monotonic() - started < TIMEOUT_SECONDS + MARGIN_SECONDS


async def works_again(world: World) -> None:
    """Heal; then commands are answered again, on connections that were dialled anew."""
    world.proxy.heal()
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                value = await world.redis.call(lambda client: client.get("key"))
                break
            except RedisAway:
                await anyio.sleep(POLL_SECONDS)
    assert value == b"value"


async def increment(world: World) -> None:
    await world.redis.call(lambda client: client.incr("counter"))


async def append(world: World) -> None:
    await world.redis.script(APPEND, ["counter"], ["1"])


FAULTS: dict[str, Fault] = {
    "refuse": FaultProxy.refuse,
    "reset": FaultProxy.reset,
    "stall": FaultProxy.stall,
    "long delay": lambda proxy: proxy.delay(1_000),
    "trickle": lambda proxy: proxy.throttle(1),
    "cut after the command": lambda proxy: proxy.cut_after(b"counter"),
    "cut before the command": lambda proxy: proxy.cut_after(b"counter", drop_pattern=True),
    "cut in the command": lambda proxy: proxy.cut_after_bytes(5, count=MANY),
    "cut before the answer": lambda proxy: proxy.cut_after_bytes(0, "to_client", count=MANY),
    "cut in the answer": lambda proxy: proxy.cut_after_bytes(2, "to_client", count=MANY),
    "silence after the command": lambda proxy: proxy.stall_after(b"counter"),
    "one silent connection": lambda proxy: proxy.freeze_after(b"counter"),
}
EVERY_FAULT = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())


@EVERY_FAULT
async def test_a_fault_in_a_command_is_redis_away_in_time(world: World, fault: Fault) -> None:
    fault(world.proxy)
    async with in_time():
        with pytest.raises(RedisAway):
            await increment(world)
    await works_again(world)
    # Not twice: whether to try again only the caller knows.
    assert await ask(world.port, "INCRBY", "counter", "0") in (":0", ":1")


@EVERY_FAULT
async def test_a_fault_in_a_script_is_redis_away_in_time(world: World, fault: Fault) -> None:
    await world.redis.script(APPEND, ["key"], [""])
    fault(world.proxy)
    async with in_time():
        with pytest.raises(RedisAway):
            await append(world)
    await works_again(world)
    # Not twice: whether to try again only the caller knows.
    assert await ask(world.port, "STRLEN", "counter") in (":0", ":1")


@EVERY_FAULT
async def test_a_fault_under_many_calls_ends_every_one_of_them(world: World, fault: Fault) -> None:
    outcomes: list[bool] = []

    async def call() -> None:
        try:
            await increment(world)
            outcomes.append(True)
        except RedisAway:
            outcomes.append(False)

    fault(world.proxy)
    async with in_time(), anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(call)
    assert len(outcomes) == 50
    assert False in outcomes
    await works_again(world)
    counted = await ask(world.port, "INCRBY", "counter", "0")
    assert outcomes.count(True) <= int(counted.removeprefix(":")) <= 50


@pytest.mark.parametrize("name", ["refuse", "reset", "stall"])
async def test_during_a_fault_nothing_waits_longer_than_it_may(world: World, name: str) -> None:
    FAULTS[name](world.proxy)
    for _ in range(3):
        async with in_time():
            assert not await world.redis.reachable()
    await works_again(world)


@pytest.mark.parametrize(
    "fault",
    [lambda proxy: proxy.delay(0.02), lambda proxy: proxy.throttle(20_000)],
    ids=["delay", "throttle"],
)
async def test_a_slow_network_is_no_outage(world: World, fault: Fault) -> None:
    fault(world.proxy)
    for _ in range(5):
        await increment(world)
    assert await world.redis.call(lambda client: client.get("counter")) == b"5"


@pytest.mark.parametrize("name", ["refuse", "reset", "stall"])
async def test_a_topic_is_heard_again_after_a_fault(world: World, name: str) -> None:
    async with world.redis.listen("news") as topic:
        await ask(world.port, "PUBLISH", "news", "before")
        assert await topic.receive(PATIENCE_SECONDS) == b"before"
        FAULTS[name](world.proxy)
        async with in_time():
            assert not await world.redis.reachable()
        await works_again(world)
        # What is published before the topic is heard anew is lost.
        with anyio.fail_after(PATIENCE_SECONDS):
            heard = None
            while heard is None:
                await ask(world.port, "PUBLISH", "news", "after")
                heard = await topic.receive(POLL_SECONDS)
        assert heard == b"after"


async def test_calls_cancelled_during_a_fault_leave_a_client_that_works(world: World) -> None:
    async def give_up(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while True:
                try:
                    await increment(world)
                except RedisAway:
                    await anyio.sleep(POLL_SECONDS)

    world.proxy.stall()
    async with in_time(), anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(give_up, number * 0.004)
    await works_again(world)


async def test_whatever_comes_one_after_the_other_the_client_recovers(world: World) -> None:
    for fault in FAULTS.values():
        fault(world.proxy)
        async with in_time():
            with pytest.raises(RedisAway):
                await increment(world)
        await works_again(world)
    with anyio.fail_after(PATIENCE_SECONDS):
        await world.redis.back()
    assert world.redis.trouble == ""
