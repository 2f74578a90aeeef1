"""A daemon with people: shoppers who click and business that sends, and how it all must end."""

import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import anyio

from tests.system.daemon_process import SETTLE_SECONDS, DaemonProcess
from tests.system.load import LoadLog, load, sample_paths
from tests.system.mail import Sender, quiescent, told_once
from tests.system.waiting import until

CLICK_PAUSE_SECONDS = 0.01
"""Between a shopper's clicks: what is tested is what becomes of them, not how many there can be."""
SEND_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Traffic:
    """What goes on while a test makes trouble."""

    daemon: DaemonProcess
    log: LoadLog
    sender: Sender

    async def more(self, redirects: int = 50, messages: int = 10) -> None:
        """Return once so many more redirects were given and messages published."""
        wanted = len(self.sender.message_ids) + messages

        async def published() -> bool:
            return len(self.sender.message_ids) >= wanted

        with self.daemon.shown_on_failure(SETTLE_SECONDS):
            try:
                await self.log.more(redirects)
            except TimeoutError:
                raise AssertionError(f"no redirects; instead {self.log.failures}") from None
            await until(published, seconds=SETTLE_SECONDS)


@contextlib.asynccontextmanager
async def traffic(daemon: DaemonProcess, randomness: random.Random) -> AsyncIterator[Traffic]:
    """Have people use the daemon while the block runs; it is started unless it runs."""
    if not daemon.running:
        await daemon.start()
    sender = Sender(daemon.observed_database_url)
    paths = sample_paths(randomness)
    clicking = load(daemon.redirect_port, paths, connections=2, pause_seconds=CLICK_PAUSE_SECONDS)
    async with clicking as log, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(sender.keep_sending, pause_seconds=SEND_PAUSE_SECONDS))
        yield Traffic(daemon, log, sender)
        tasks.cancel_scope.cancel()


async def ready_names(daemon: DaemonProcess, *checks: str) -> None:
    """Return once the operators' /ready names all of these checks as failing."""

    async def names_them() -> bool:
        return set(checks) <= (await daemon.readiness()).failing

    with daemon.shown_on_failure(SETTLE_SECONDS):
        await until(names_them, seconds=SETTLE_SECONDS)


async def all_is_well(daemon: DaemonProcess) -> None:
    """Return once nothing fails in the operators' /ready."""

    async def nothing_fails() -> bool:
        return not (await daemon.readiness()).failing

    with daemon.shown_on_failure(SETTLE_SECONDS):
        await until(nothing_fails, seconds=SETTLE_SECONDS)


async def nothing_was_lost(seen: Traffic) -> None:
    """Fail unless each shopper was redirected and stored once, and each message told once."""
    assert seen.log.failures == {}
    await everything_arrived(seen)


async def everything_arrived(seen: Traffic) -> None:
    """The same where the daemon itself was down at times."""
    daemon = seen.daemon
    await quiescent(daemon)
    await told_once(daemon, seen.sender.message_ids)
    await daemon.stored(seen.log.click_ids)
    await daemon.settled()
    await all_is_well(daemon)
    await daemon.audit()
