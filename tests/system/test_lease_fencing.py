"""Whoever sleeps through its lease is replaced, and finds out when it wakes."""

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from couponflow.kernel.migrations import migrate
from tests.system.crash_scenarios import count, exactly_these_told
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, Sender, sending
from tests.system.waiting import until

SLEEPER = "sleeper"
POOL_MAX = 4
CAUGHT_SECONDS = 60.0
"""It takes some tries to stop a process in the middle of a transaction."""
LEASE_LOST = "lease lost: this worker was taken for dead"

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]


def a_daemon(var: Path, environment: Mapping[str, str], name: str) -> DaemonProcess:
    """One of several on a database, whose sessions there have its name."""
    own = {
        "DATABASE_URL": f"{environment['DATABASE_URL']}&application_name={name}",
        "COUPONFLOW_DATABASE_POOL_MAX": str(POOL_MAX),
        # The one that is awake has to keep its own on a busy machine.
        "COUPONFLOW_OUTBOX_LEASE_SECONDS": "4",
    }
    return DaemonProcess(
        var.parent / name, roles="email,sms", demo=False, environment={**environment, **own}
    )


def worker_id_of(daemon: DaemonProcess) -> str:
    """The incarnation that its var folder remembers."""
    return (daemon.var / "worker.id").read_text()


async def messages_of(daemon: DaemonProcess, worker_id: str) -> int:
    rows = await daemon.rows(f"select count(*) from outbox where owner = '{worker_id}' and begun")
    return int(str(rows[0][0]))


async def put_to_sleep_at_work(sleeper: DaemonProcess, sender: Sender) -> None:
    """Stop it when it has begun messages, and is in the middle of the effect of one."""

    async def has_begun_some() -> bool:
        # On a machine busy enough it may have lost a lease, and be another by now.
        return await messages_of(sleeper, worker_id_of(sleeper)) > POOL_MAX

    async def has_begun_some_or_missed_all() -> bool:
        # The other may have been quicker, and taken every message of both channels.
        return await has_begun_some() or await count(sleeper, "outbox") == 0

    async def sleeps_at_work() -> bool:
        await sender.send(500, batch=500)
        await until(has_begun_some_or_missed_all)
        sleeper.send_signal(signal.SIGSTOP)
        in_transaction = await sleeper.rows(
            "select pid from pg_stat_activity where state = 'idle in transaction'"
            f" and datname = current_database() and application_name = '{SLEEPER}'"
        )
        if in_transaction and await has_begun_some():
            return True
        sleeper.send_signal(signal.SIGCONT)
        return False

    await until(sleeps_at_work, seconds=CAUGHT_SECONDS)


async def other_has_finished_the_rest(other: DaemonProcess, sleepers_id: str) -> None:
    """Return once nothing is left but what is locked by transactions of the sleeper."""

    async def only_locked_messages_are_left() -> bool:
        left = await count(other, "outbox")
        return left == await messages_of(other, sleepers_id) <= POOL_MAX

    with other.shown_on_failure(20):
        await until(only_locked_messages_are_left)


async def late_messages(daemon: DaemonProcess) -> float:
    """How many messages it worked on that were another's by the end."""
    metrics = await daemon.metrics()
    return sum(
        metrics[f'couponflow_messages_total{{channel="{channel}",outcome="{outcome}"}}']
        for channel in ("emails", "sms")
        for outcome in ("duplicate", "fenced")
    )


async def test_a_daemon_that_slept_through_its_lease_changes_nothing_when_it_wakes(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str]
) -> None:
    await migrate(empty_database["DATABASE_URL"])
    environment = {**empty_database, **carrier, **IMPATIENT}
    sender = Sender(empty_database["DATABASE_URL"])
    async with (
        a_daemon(var, environment, SLEEPER) as sleeper,
        a_daemon(var, environment, "other") as other,
    ):
        await sleeper.start()
        await other.start()
        await put_to_sleep_at_work(sleeper, sender)
        slept_as = worker_id_of(sleeper)
        await other_has_finished_the_rest(other, slept_as)
        async with sending(sender):
            sleeper.send_signal(signal.SIGCONT)
            await until(lambda: _is_another(sleeper, slept_as))
            await sleeper.says(LEASE_LOST)
        await exactly_these_told(other, sender.message_ids)
        assert await late_messages(sleeper) > 0
        assert await count(other, "workers where expired_at is null") == 2
        assert LEASE_LOST not in other.stderr
        await other.audit()


async def _is_another(daemon: DaemonProcess, worker_id: str) -> bool:
    assert daemon.running, "it has exited"
    return worker_id_of(daemon) != worker_id
