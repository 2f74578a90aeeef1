"""Writes events down, many in one transaction, and tells each sender's request when it is done.

While one transaction is being committed, the events of other requests gather; the next transaction
takes them all. So the cost of a commit is shared by as many events as arrive while it lasts.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import anyio
import psycopg
import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Connection, Database, DatabaseAway
from couponflow.kernel.error_text import describe
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.store import EventRow, store_events, wake_relays

Stored = Literal["accepted", "duplicate", "unavailable"]
"""`unavailable` may have been written all the same: whoever sends it again finds out."""

BATCH_EVENTS_MAX = 256
BATCH_BYTES_MAX = 8 * 1024 * 1024
IDLE_SECONDS = 1.0
"""A connection is held for so long while no event comes."""
SWEEP_SECONDS = 0.1
COMPLAIN_SECONDS = 5.0
"""How often at most it is logged that events had to be given up."""
WAKE_SECONDS = 0.1
"""How late the relays may hear of an event, and how often at most."""
_TROUBLE = (DatabaseAway, psycopg.Error)
_OF_ONE_EVENT = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    UnicodeEncodeError,
)
"""Errors that only one event of a batch may have brought about."""
_log = structlog.get_logger("couponflow.webhooks")


@dataclass(slots=True)
class _Waiting:
    """An event and who wants to know that it is stored."""

    row: EventRow
    give_up_at: float
    answer: Callable[[Stored], None] | None

    def resolve(self, stored: Stored) -> None:
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(stored)


def _order(waiting: _Waiting) -> tuple[str, str]:
    return waiting.row.source, waiting.row.event_id


class EventWriter:
    """One transaction at a time a writer; `run` two of them to overlap work and commit."""

    def __init__(
        self, database: Database, clock: Clock, metrics: WebhookMetrics, store_seconds: float
    ) -> None:
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._store_seconds = store_seconds
        self._pending: deque[_Waiting] = deque()
        self._deadlines: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._written = asyncio.Event()

    @property
    def backlog(self) -> int:
        """How many events no writer has taken up yet."""
        return len(self._pending)

    def submit(self, row: EventRow, answer: Callable[[Stored], None]) -> None:
        """Have an event stored; `answer` is called once, within `store_seconds`.

        What is submitted is bounded by those who do: each waits for its answer, and what is
        answered is forgotten.
        """
        waiting = _Waiting(row, self._clock.monotonic() + self._store_seconds, answer)
        self._pending.append(waiting)
        self._deadlines.append(waiting)
        self._arrived.set()

    async def run(self, writers: int) -> None:
        """Write until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._give_up_late)
                tasks.start_soon(self._wake_relays)
                for _ in range(writers):
                    tasks.start_soon(self._write)
        finally:
            # Nobody is left without an answer.
            self._fail_pending(None)

    async def _write(self) -> None:
        """Store batch after batch on one connection, for to borrow one costs a round trip."""
        while True:
            await self._arrived.wait()
            try:
                async with self._database.connection() as connection:
                    while not connection.closed and await self._come_soon():
                        # Another writer may have been quicker.
                        if batch := self._take():
                            await self._store(connection, batch)
            except _TROUBLE as error:
                self._fail_pending(error)

    async def _come_soon(self) -> bool:
        """Wait for events, but not so long that others miss the connection."""
        if not self._arrived.is_set():
            with anyio.move_on_after(IDLE_SECONDS):
                await self._arrived.wait()
        return self._arrived.is_set()

    def _take(self) -> list[_Waiting]:
        """The next events, oldest first; those that were given up are left out."""
        batch: list[_Waiting] = []
        size = 0
        pending = self._pending
        while pending and len(batch) < BATCH_EVENTS_MAX and size < BATCH_BYTES_MAX:
            waiting = pending.popleft()
            if waiting.answer is not None:
                batch.append(waiting)
                size += len(waiting.row.body)
        if not pending:
            self._arrived.clear()
        # In one order everywhere: two transactions with the same two events wait for each other
        # once, not for ever.
        batch.sort(key=_order)
        return batch

    async def _store(self, connection: Connection, batch: list[_Waiting]) -> None:
        """Store a batch; where one event of it cannot be stored, the others are all the same."""
        try:
            try:
                await self._commit(connection, batch)
            except _OF_ONE_EVENT:
                for waiting in batch:
                    await self._store_alone(connection, waiting)
        except psycopg.Error as error:
            if connection.closed:
                # Most likely it broke while nothing was going on. If it was in the commit, the
                # events are found to be there; if PostgreSQL is away, the next borrowing says so.
                self._put_back(batch)
            else:
                self._fail(batch, error)
        except BaseException:
            # The daemon stops: nobody is left without an answer.
            self._fail(batch, None)
            raise

    async def _store_alone(self, connection: Connection, waiting: _Waiting) -> None:
        try:
            await self._commit(connection, [waiting])
        except _OF_ONE_EVENT as error:
            self._fail([waiting], error)

    def _put_back(self, batch: list[_Waiting]) -> None:
        """Have events tried once more on another connection; their time is up at some point."""
        again = [waiting for waiting in batch if waiting.answer is not None]
        self._pending.extendleft(reversed(again))
        if again:
            self._arrived.set()

    async def _commit(self, connection: Connection, batch: list[_Waiting]) -> None:
        crash_point("webhooks.verified")
        new = await store_events(connection, [waiting.row for waiting in batch])
        crash_point("webhooks.stored")
        self._metrics.batches += 1
        self._written.set()
        for waiting in batch:
            waiting.resolve("accepted" if waiting.row.webhook_id in new else "duplicate")

    def _fail_pending(self, error: Exception | None) -> None:
        """PostgreSQL is away, or the daemon stops: whoever waits is told to send again later."""
        pending, self._pending = self._pending, deque()
        self._arrived.clear()
        self._fail(list(pending), error)

    def _fail(self, batch: list[_Waiting], error: Exception | None) -> None:
        left = [waiting for waiting in batch if waiting.answer is not None]
        if left:
            reason = describe(error) if error is not None else "the daemon stops"
            _log.warning("webhooks not stored", events=len(left), error=reason)
        for waiting in left:
            waiting.resolve("unavailable")

    async def _wake_relays(self) -> None:
        """Tell the relays of what was written, at most so many times a second."""
        while True:
            await self._written.wait()
            self._written.clear()
            try:
                async with self._database.connection() as connection:
                    await wake_relays(connection)
            except _TROUBLE as error:
                # They poll, too.
                _log.debug("relays not woken", error=describe(error))
            await anyio.sleep(WAKE_SECONDS)

    async def _give_up_late(self) -> None:
        """Answer those whose time is up, whatever PostgreSQL does meanwhile, and forget them."""
        late, complained_at = 0, -COMPLAIN_SECONDS
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            now = self._clock.monotonic()
            late += self._give_up(now)
            if late and now - complained_at >= COMPLAIN_SECONDS:
                _log.warning("webhooks not stored", events=late, error="PostgreSQL is too slow")
                late, complained_at = 0, now

    def _give_up(self, now: float) -> int:
        """How many were answered so; with their bodies, these may be a lot of memory."""
        late = 0
        deadlines, pending = self._deadlines, self._pending
        while deadlines and (deadlines[0].answer is None or deadlines[0].give_up_at <= now):
            waiting = deadlines.popleft()
            late += waiting.answer is not None
            waiting.resolve("unavailable")
        # They came in the same order.
        while pending and pending[0].answer is None:
            pending.popleft()
        return late
