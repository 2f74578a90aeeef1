"""No message is lost or told twice by `kill -9`, whatever carries it.

One that is at work at three kills is a dead letter, as if it had killed: an operator replays it.
"""

import os
import random
from pathlib import Path

import anyio
import pytest

from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, Sender, quiescent, replay_the_killed, told_once

ROUNDS = int(os.environ.get("COUPONFLOW_KILL_ROUNDS") or 4)
LATEST_KILL_SECONDS = 0.6

pytestmark = [pytest.mark.system, pytest.mark.timeout(60 + 15 * ROUNDS)]


async def test_no_message_is_lost_or_told_twice_however_often_the_daemon_is_killed(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    environment = {**empty_database, **carrier, **IMPATIENT}
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        sender = Sender(daemon.database_url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.keep_sending)
            for _ in range(ROUNDS):
                await sender.send(100)
                await anyio.sleep(randomness.uniform(0.0, LATEST_KILL_SECONDS))
                await daemon.restart()
            tasks.cancel_scope.cancel()
        await quiescent(daemon)
        await replay_the_killed(daemon)
        assert len(sender.message_ids) >= 100 * ROUNDS
        await told_once(daemon, sender.message_ids)
        await daemon.audit()
