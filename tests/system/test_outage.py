"""PostgreSQL goes away and comes back: shoppers notice nothing, and nothing is lost."""

import os
import random
import signal
from pathlib import Path

import anyio
import pytest

from couponflow.kernel.postgres_socket import running_server
from tests.postgres_server import PostgresServer
from tests.system.answers import Stats
from tests.system.daemon_process import DaemonProcess
from tests.system.load import load, sample_paths
from tests.system.mail import IMPATIENT
from tests.system.waiting import until

FOLLOWS = {"queue:clicks", "outbox:relay", "worker:lease"}
"""What need not fail at once: a queue takes time to fill, and the others look now and then."""
OUTAGE_SECONDS = float(os.environ.get("COUPONFLOW_OUTAGE_SECONDS") or 3)

pytestmark = [pytest.mark.system, pytest.mark.timeout(90 + 2 * OUTAGE_SECONDS)]


def on(postgres: PostgresServer, carrier: dict[str, str] | None = None) -> dict[str, str]:
    """Settings of a daemon that soon notices when that server is away."""
    timeout = {"COUPONFLOW_DATABASE_CONNECT_TIMEOUT_SECONDS": "1"}
    return {"DATABASE_URL": postgres.url, **timeout, **(carrier or {})}


async def readiness_names(daemon: DaemonProcess, failing: set[str]) -> None:
    """Return once /ready of the operators' port names these checks; what follows may join them."""

    async def names_them() -> bool:
        return (await daemon.readiness()).failing - FOLLOWS == failing

    await until(names_them)


async def all_is_well(daemon: DaemonProcess) -> Stats:
    async def nothing_fails() -> bool:
        return not (await daemon.readiness()).failing

    await until(nothing_fails)
    return await daemon.settled()


async def test_shoppers_do_not_notice_an_outage_and_nothing_is_lost(
    var: Path,
    stoppable_postgres: PostgresServer,
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    async with DaemonProcess(var, environment=on(stoppable_postgres, carrier)) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(100)
            await stoppable_postgres.stop()
            went_at = anyio.current_time()
            await log.more(100)
            await readiness_names(daemon, {"database", "flush:clicks"})
            assert (await daemon.readiness(ops=False)).status == "degraded"
            await anyio.sleep(max(0.0, OUTAGE_SECONDS - (anyio.current_time() - went_at)))
            await log.more(100)
            await stoppable_postgres.start()
            await log.more(100)
        assert log.failures == {}
        await daemon.stored(log.click_ids)
        assert (await all_is_well(daemon)).total >= len(log.click_ids)
        await daemon.audit()


async def statistics_are_stale(daemon: DaemonProcess) -> bool:
    return (await daemon.stats()).stale


async def statistics_are_fresh(daemon: DaemonProcess) -> bool:
    return not (await daemon.stats()).stale


async def test_statistics_are_stale_or_unavailable_during_an_outage_and_say_so(
    var: Path, stoppable_postgres: PostgresServer
) -> None:
    async with DaemonProcess(var, environment=on(stoppable_postgres)) as daemon:
        await daemon.start()
        await stoppable_postgres.stop()
        answer = await daemon.get("/stats")
        assert (answer.status, answer.problem) == (503, "database-away")
        assert int(answer.headers["retry-after"]) > 0
        await stoppable_postgres.start()
        await all_is_well(daemon)
        assert not (await daemon.stats()).stale
        await stoppable_postgres.stop()
        await until(lambda: statistics_are_stale(daemon))
        assert (await daemon.stats()).total == 0
        await stoppable_postgres.start()
        await until(lambda: statistics_are_fresh(daemon))
        await all_is_well(daemon)
        await daemon.audit()


async def test_a_daemon_killed_during_an_outage_waits_for_postgres_and_stores_everything(
    var: Path,
    stoppable_postgres: PostgresServer,
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    environment = {**on(stoppable_postgres, carrier), **IMPATIENT}
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(100)
            await stoppable_postgres.stop()
            await log.more(500)
            assert log.failures == {}
            await daemon.kill()
        await daemon.launch()
        await daemon.says("waiting for PostgreSQL")
        assert daemon.running
        await stoppable_postgres.start()
        await daemon.ready()
        await daemon.stored(log.click_ids)
        await all_is_well(daemon)
        await daemon.audit()


async def test_a_killed_embedded_postgres_is_started_again_and_nothing_is_lost(
    var: Path, randomness: random.Random
) -> None:
    async with DaemonProcess(var) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(500)
            killed = running_server(var / "postgres")
            assert killed is not None
            os.kill(killed.pid, signal.SIGKILL)
            await log.more(500)
            await daemon.says("postgres_restarted")
            await log.more(100)
        assert log.failures == {}
        await daemon.stored(log.click_ids)
        await all_is_well(daemon)
        await daemon.audit()
