"""People who want something said, and a look at whether it was: once, and nothing else."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

import anyio
import psycopg

from couponflow.kernel.channel_redis_scripts import GROUP
from couponflow.kernel.database import Connection
from couponflow.kernel.outbox import Outgoing, publish_many
from couponflow.messages import CHANNELS, EmailRequested, Message, SmsRequested
from tests.redis_server import ask
from tests.system.daemon_process import SETTLE_SECONDS, DaemonProcess
from tests.system.waiting import until

IMPATIENT = {
    "COUPONFLOW_OUTBOX_LEASE_SECONDS": "1",
    "COUPONFLOW_OUTBOX_POLL_SECONDS": "0.2",
    "COUPONFLOW_OUTBOX_VERIFY_SECONDS": "0.3",
    "COUPONFLOW_REDIS_CLAIM_IDLE_SECONDS": "1",
    "COUPONFLOW_REDIS_TIMEOUT_SECONDS": "2",
}
"""Settings with which a daemon notices a death at once, for those who test it."""


class Sender:
    """Publishes as a business transaction does, and remembers what was committed."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.message_ids: list[str] = []
        self.refused = 0
        """Transactions whose outcome the client does not know; none of theirs is expected."""

    async def send(self, count: int, *, batch: int = 10) -> None:
        """Publish so many messages, emails and SMS in turn, in transactions of `batch`."""
        connecting = psycopg.AsyncConnection.connect(self._database_url, autocommit=True)
        async with await connecting as connection:
            for start in range(0, count, batch):
                await self._send_batch(connection, min(batch, count - start))

    async def keep_sending(self, *, pause_seconds: float = 0.005) -> None:
        """Publish until cancelled, also while PostgreSQL comes and goes."""
        while True:
            try:
                await self.send(1, batch=1)
            except psycopg.OperationalError:
                self.refused += 1
            await anyio.sleep(pause_seconds)

    async def _send_batch(self, connection: Connection, count: int) -> None:
        first = len(self.message_ids)
        outgoing = [
            Outgoing(message=a_message(first + number), correlation_id=f"story {first + number}")
            for number in range(count)
        ]
        async with connection.transaction():
            written = await publish_many(connection, outgoing)
        self.message_ids += [each for each in written if each is not None]


@contextlib.asynccontextmanager
async def sending(sender: Sender, *, pause_seconds: float = 0.02) -> AsyncIterator[None]:
    """Publish while the block runs, and know of every message at its end: none is cut off."""
    over = anyio.Event()

    async def keep_sending() -> None:
        while not over.is_set():
            await sender.send(3, batch=1)
            with anyio.move_on_after(pause_seconds):
                await over.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_sending)
        yield
        over.set()


def a_message(number: int) -> Message:
    """The how-many-eth message: an email or an SMS."""
    if number % 3 == 2:
        return SmsRequested(to="+919800000000", text=f"number {number}")
    return EmailRequested(to=f"reader{number}@mail.example", subject="Hello", text=f"{number}")


async def quiescent(daemon: DaemonProcess) -> None:
    """Return when no message is on its way any more."""

    async def nothing_waits() -> bool:
        assert daemon.running, "it has exited"
        rows = await daemon.rows("select count(*) from outbox")
        return rows[0][0] == 0

    with daemon.shown_on_failure(SETTLE_SECONDS):
        await until(nothing_waits, seconds=SETTLE_SECONDS)


async def told_once(daemon: DaemonProcess, message_ids: Sequence[str]) -> None:
    """Fail unless each of these messages told somebody something, once, and nothing died."""
    rows = await daemon.rows("select id::text from notifications")
    told = [str(row[0]) for row in rows]
    assert len(told) == len(set(told))
    assert set(message_ids) - set(told) == set(), "some were never told"
    letters = await daemon.rows("select channel, reason, errors from dead_letters")
    assert list(letters) == []


async def replay_the_killed(daemon: DaemonProcess) -> None:
    """Return once what was at work at every kill, and is dead for it, has had one more chance.

    Fails if anything died of another cause.
    """
    letters = await daemon.rows("select reason from dead_letters")
    if letters:
        assert {row[0] for row in letters} == {"attempt 3 of 3 ended with its worker"}
        replayed = await daemon.command("dead-letters", "replay", "--all", "--yes")
        assert replayed.code == 0, replayed.err
        await quiescent(daemon)


async def streams_empty(daemon: DaemonProcess) -> None:
    """Return when no stream of the daemon's Redis, if it has one, holds an entry any more."""
    url = daemon.environment.get("REDIS_URL")
    if not url:
        return
    port = urlsplit(url).port or 6379

    async def all_are_empty() -> bool:
        return {await ask(port, "XLEN", f"queue:{name}") for name in CHANNELS} == {":0"}

    with daemon.shown_on_failure(SETTLE_SECONDS):
        await until(all_are_empty, seconds=SETTLE_SECONDS)
    for name in CHANNELS:
        # The first of the four values is how many entries are handed out.
        pending = await ask(port, "XPENDING", f"queue:{name}", GROUP)
        assert pending.startswith(("*4\r\n:0\r\n", "-NOGROUP")), pending
