"""A daemon that is told to stop at any moment leaves its messages in order."""

import os
import random
from pathlib import Path

import anyio
import pytest

from couponflow.kernel.migrations import migrate
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, Sender, quiescent, sending, streams_empty, told_once

ROUNDS = int(os.environ.get("COUPONFLOW_STOP_ROUNDS") or 4)
LATEST_STOP_SECONDS = 0.6
DEADLINE_SECONDS = 10

pytestmark = [pytest.mark.system, pytest.mark.timeout(60 + 20 * ROUNDS)]


async def left_in_order(daemon: DaemonProcess) -> None:
    """Fail unless a stopped daemon has given everything back as if it had never had it."""
    assert list(await daemon.rows("select id, name from workers")) == []
    assert list(await daemon.rows("select id from outbox where owner is not null")) == []
    tried = "select attempts, errors from outbox where attempts > 0 or errors <> '[]' or lapsed"
    assert list(await daemon.rows(tried)) == []


async def test_a_stop_at_any_moment_loses_no_message_and_no_attempt(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    await migrate(empty_database["DATABASE_URL"])
    deadline = {"COUPONFLOW_SHUTDOWN_DEADLINE": str(DEADLINE_SECONDS)}
    environment = {**empty_database, **carrier, **IMPATIENT, **deadline}
    sender = Sender(empty_database["DATABASE_URL"])
    async with DaemonProcess(var, roles="email,sms", demo=False, environment=environment) as daemon:
        async with sending(sender):
            for _ in range(ROUNDS):
                await daemon.start()
                await sender.send(200, batch=50)
                await anyio.sleep(randomness.uniform(0.0, LATEST_STOP_SECONDS))
                ended = await daemon.terminate()
                assert ended.code == 0, daemon.stderr[-4000:]
                assert ended.seconds < DEADLINE_SECONDS
                await left_in_order(daemon)
        assert "roles_cut_off" not in daemon.stderr
        assert "Traceback" not in daemon.stderr
        await daemon.start()
        await quiescent(daemon)
        await streams_empty(daemon)
        await told_once(daemon, sender.message_ids)
        assert len(sender.message_ids) >= 200 * ROUNDS
        assert (await daemon.terminate()).code == 0
        await left_in_order(daemon)
        await daemon.audit()
