"""No click is lost by `kill -9`: each one a client was answered for is a row in the end."""

import os
import random
from pathlib import Path

import anyio
import pytest

from tests.system.daemon_process import DaemonProcess
from tests.system.load import LoadLog, load, sample_paths
from tests.system.mail import IMPATIENT

ROUNDS = int(os.environ.get("COUPONFLOW_KILL_ROUNDS") or 5)
REDIRECTS_BEFORE_A_KILL = 50
LATEST_KILL_SECONDS = 0.8

pytestmark = [pytest.mark.system, pytest.mark.timeout(60 + 10 * ROUNDS)]


async def killed_under_load(daemon: DaemonProcess, randomness: random.Random) -> LoadLog:
    """Kill and start the daemon again and again, at random moments; what the clients saw."""
    await daemon.start()
    async with load(daemon.redirect_port, sample_paths(randomness)) as log:
        for _ in range(ROUNDS):
            await log.more(REDIRECTS_BEFORE_A_KILL)
            await anyio.sleep(randomness.uniform(0.0, LATEST_KILL_SECONDS))
            await daemon.restart()
        await log.more(REDIRECTS_BEFORE_A_KILL)
    return log


async def every_answered_click_is_one_row(daemon: DaemonProcess, log: LoadLog) -> None:
    assert set(log.statuses) == {302}
    assert log.refused > 0, "it was never down"
    await daemon.stored(log.click_ids)
    stats = await daemon.settled()
    assert stats.total == await daemon.count_rows() >= len(log.click_ids)
    assert sum(stats.by_verdict.values()) == stats.total
    metrics = await daemon.metrics()
    assert metrics['couponflow_dead_letters{channel="clicks"}'] == 0
    assert metrics["couponflow_journal_set_aside_total"] == 0


async def test_nothing_is_lost_when_daemon_and_embedded_postgres_are_killed(
    var: Path, randomness: random.Random
) -> None:
    async with DaemonProcess(var) as daemon:
        log = await killed_under_load(daemon, randomness)
        await every_answered_click_is_one_row(daemon, log)
        await daemon.audit()


async def test_nothing_is_lost_when_the_daemon_alone_is_killed(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    environment = {**empty_database, **carrier, **IMPATIENT}
    async with DaemonProcess(var, environment=environment) as daemon:
        log = await killed_under_load(daemon, randomness)
        await every_answered_click_is_one_row(daemon, log)
        await daemon.audit()
