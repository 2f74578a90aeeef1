"""Whoever dies between taking an event and its effect loses none and repeats none.

`test_crash_points.py` has the two points of the intake itself; here are those that a webhook passes
after it, and moments that nobody chose.
"""

import random
from pathlib import Path

import anyio
import pytest

from couponflow.kernel.migrations import migrate
from tests.system.crash_scenarios import Scene, webhooks
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, streams_empty
from tests.system.providers import ROLES, Providers, intake_answers

KILLS = 3
PASSED_IN_MEMORY = (
    "outbox.claimed",
    "handler.begun",
    "handler.effect",
    "handler.committed",
    "handler.returned",
    "handler.settled",
)
PASSED_IN_STREAMS = ("outbox.streamed", "channel.received", "handler.effect", "handler.committed")
PLACES = [
    *(("memory", point) for point in PASSED_IN_MEMORY),
    *(("redis", point) for point in PASSED_IN_STREAMS),
]

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize(("carrier", "point"), PLACES, indirect=["carrier"])
async def test_every_acknowledged_event_has_its_effect_once_although_the_process_dies_here(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
    point: str,
) -> None:
    await migrate(empty_database["DATABASE_URL"])
    environment = {**empty_database, **carrier, **IMPATIENT}
    # Not always the first to come by, so that messages of every channel die.
    visits = (randomness.randint(1, 12),)
    await webhooks(Scene(var.parent, environment, randomness, point, visits))


async def test_nothing_is_lost_or_repeated_when_the_daemon_is_killed_again_and_again(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str], randomness: random.Random
) -> None:
    providers = Providers(randomness, lives=24)
    environment = {**empty_database, **carrier, **IMPATIENT, **providers.settings}
    async with DaemonProcess(var, roles=ROLES, demo=False, environment=environment) as daemon:
        await daemon.start()
        await intake_answers(daemon)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(providers.send_all, daemon)
            for _ in range(KILLS):
                await anyio.sleep(randomness.uniform(0.0, 0.3))
                await daemon.restart()
        await providers.settled(daemon)
        await streams_empty(daemon)
        await daemon.audit()
