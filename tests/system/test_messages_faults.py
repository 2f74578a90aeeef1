"""Networks that fail in every way: shoppers notice nothing, and all is told and stored once."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from couponflow.kernel import channel_redis_scripts as scripts
from tests.fault_proxy import Direction, FaultProxy, fault_proxy, postgres_target, redis_target
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT
from tests.system.traffic import (
    Traffic,
    all_is_well,
    nothing_was_lost,
    ready_names,
    traffic,
)
from tests.system.waiting import until

Fault = Callable[[FaultProxy], None]

SILENCES: dict[str, Fault] = {
    "refuse": FaultProxy.refuse,
    "reset": FaultProxy.reset,
    "stall": FaultProxy.stall,
}
"""What ends all work with the other side."""
SLOWNESSES: dict[str, Fault] = {
    "delay": lambda proxy: proxy.delay(0.05),
    "throttle": lambda proxy: proxy.throttle(30_000),
}
"""What work goes on with."""
SETTINGS = {
    **IMPATIENT,
    "COUPONFLOW_DATABASE_CONNECT_TIMEOUT_SECONDS": "1",
    "COUPONFLOW_DATABASE_STATEMENT_TIMEOUT_SECONDS": "2",
    "COUPONFLOW_REDIS_TIMEOUT_SECONDS": "1",
}
CUTS = 3
RANDOM_CUTS = 8
FURTHEST_CUT_BYTES = 3_000
CUT_SECONDS = 20.0

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]


@asynccontextmanager
async def behind_proxy(database_url: str) -> AsyncIterator[tuple[FaultProxy, dict[str, str]]]:
    """A proxy to PostgreSQL, and the setting of a daemon that goes through it."""
    async with fault_proxy(*postgres_target(database_url)) as proxy:
        yield proxy, {"DATABASE_URL": proxy.postgres_url(database_url)}
        proxy.heal()


@asynccontextmanager
async def behind_redis_proxy(redis_url: str) -> AsyncIterator[tuple[FaultProxy, dict[str, str]]]:
    """The same for Redis."""
    async with fault_proxy(*redis_target(redis_url)) as proxy:
        yield proxy, {"REDIS_URL": proxy.redis_url(redis_url)}
        proxy.heal()


async def suffer(seen: Traffic, proxy: FaultProxy, check: str) -> None:
    """Go through every fault, with people about, and be healed after each."""
    for fault in SILENCES.values():
        await seen.more()
        fault(proxy)
        await ready_names(seen.daemon, check)
        await seen.more()
        proxy.heal()
        await all_is_well(seen.daemon)
    for fault in SLOWNESSES.values():
        fault(proxy)
        await seen.more()
        proxy.heal()
    await seen.more()


async def test_every_fault_between_daemon_and_postgres_heals_and_loses_nothing(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    url = empty_database["DATABASE_URL"]
    async with behind_proxy(url) as (proxy, way):
        environment = {**SETTINGS, **carrier, **way}
        async with DaemonProcess(var, environment=environment, observed_database_url=url) as daemon:
            async with traffic(daemon, randomness) as seen:
                await suffer(seen, proxy, "database")
            await nothing_was_lost(seen)


async def test_every_fault_between_daemon_and_redis_heals_and_loses_nothing(
    var: Path, empty_database: dict[str, str], redis_url: str, randomness: random.Random
) -> None:
    async with behind_redis_proxy(redis_url) as (proxy, way):
        environment = {**SETTINGS, **empty_database, **way}
        async with DaemonProcess(var, environment=environment) as daemon:
            async with traffic(daemon, randomness) as seen:
                await suffer(seen, proxy, "redis")
            await nothing_was_lost(seen)


async def cut(proxy: FaultProxy, arm: Callable[[], None], count: int) -> None:
    """Arm a cut, and return once it was made so often."""
    before = proxy.cuts
    arm()

    async def made() -> bool:
        return proxy.cuts >= before + count

    await until(made, seconds=CUT_SECONDS)
    proxy.heal()


async def cut_anywhere(proxy: FaultProxy, randomness: random.Random) -> None:
    """Cut connections at random places of what is asked and of what is answered."""
    for _ in range(RANDOM_CUTS):
        direction: Direction = randomness.choice(("to_server", "to_client"))
        length = randomness.randrange(FURTHEST_CUT_BYTES)
        await cut(proxy, partial(proxy.cut_after_bytes, length, direction), 1)


async def test_a_lost_answer_of_postgres_neither_loses_nor_doubles_an_effect(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    url = empty_database["DATABASE_URL"]
    async with behind_proxy(url) as (proxy, way):
        environment = {**SETTINGS, **carrier, **way}
        async with DaemonProcess(var, environment=environment, observed_database_url=url) as daemon:
            async with traffic(daemon, randomness) as seen:
                await seen.more()
                # Carried out, and never heard of.
                await cut(proxy, lambda: proxy.cut_after(b"COMMIT\0", count=10), 10)
                # Within a COPY of clicks: none of them is stored.
                await cut(proxy, lambda: proxy.cut_after(b"Firefox/128.0", count=CUTS), CUTS)
                await cut_anywhere(proxy, randomness)
                await seen.more()
            await nothing_was_lost(seen)
        assert "commit_answer_lost" in daemon.stderr


REDIS_CUTS: dict[str, Fault] = {
    "in a batch": lambda proxy: proxy.cut_after(scripts.PUBLISH.digest.encode()),
    "in an acknowledgement": lambda proxy: proxy.cut_after(scripts.ACKNOWLEDGE.digest.encode()),
    "in a reading": lambda proxy: proxy.cut_after(scripts.READ.digest.encode()),
    "before what a batch is answered": lambda proxy: proxy.cut_after(
        b"$", "to_client", drop_pattern=True
    ),
    "before what an acknowledgement is answered": lambda proxy: proxy.cut_after(
        b":", "to_client", drop_pattern=True
    ),
    "in what a reading is answered": lambda proxy: proxy.cut_after(b"email.v1", "to_client"),
}


async def test_a_connection_to_redis_cut_anywhere_loses_and_doubles_nothing(
    var: Path, empty_database: dict[str, str], redis_url: str, randomness: random.Random
) -> None:
    async with behind_redis_proxy(redis_url) as (proxy, way):
        environment = {**SETTINGS, **empty_database, **way}
        async with DaemonProcess(var, environment=environment) as daemon:
            async with traffic(daemon, randomness) as seen:
                await seen.more()
                for fault in REDIS_CUTS.values():
                    await cut(proxy, partial(fault, proxy), 1)
                await cut_anywhere(proxy, randomness)
                await seen.more()
            await nothing_was_lost(seen)
