"""Writing down what became of messages, in batches, before their channel may forget them.

PostgreSQL first, then the channel: whoever dies in between leaves an entry whose row is gone, and
the next to see it drops it.
"""

import random
from collections import deque
from collections.abc import Sequence, Set
from typing import Literal

import anyio
import msgspec
import psycopg
import structlog

from couponflow.kernel import outbox_rows
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.channel import Delivery, Subscription
from couponflow.kernel.clock import Clock
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.database_connection import Connection
from couponflow.kernel.dead_letters import AttemptError, DeadLetter, bury
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.outbox_rows import PutBack, Token
from couponflow.kernel.workers import WorkerLease

BATCH_MAX = 500
_TROUBLE = (DatabaseAway, psycopg.OperationalError)
_UNWRITABLE = "PostgreSQL refuses what became of it; the log says why"
_log = structlog.get_logger("couponflow.messages")


class Finished(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Done or discarded; PostgreSQL may know already (`recorded`)."""

    outcome: Literal["done", "discarded"]
    recorded: bool = False


class Later(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag=True):
    """To be tried again."""

    after_seconds: float = 0.0
    available_at: float | None = None
    error: AttemptError | None = None
    forgiven: bool = False
    lapsed: bool = False
    """It came from a dead consumer: to be tried alone."""


class Dead(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag=True):
    """Not to be tried again by itself."""

    reason: str
    error: AttemptError | None = None
    attempts: int | None = None
    """Attempts made, where the latest was not."""


class Dropped(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Nothing to decide: it was done before, or is another worker's."""


Verdict = Finished | Later | Dead | Dropped
Judged = tuple[Delivery[Envelope], Verdict]


class Settler:
    """Settles what one consumer has judged.

    While PostgreSQL is away it keeps trying; its backlog is bounded by what the consumer has in
    flight.
    """

    def __init__(
        self,
        database: Database,
        subscription: Subscription[Envelope],
        ids: Uuid7Generator,
        randomness: random.Random,
        counts: ChannelCounts,
        lease: WorkerLease,
        clock: Clock,
    ) -> None:
        self._database = database
        self._subscription = subscription
        self._ids = ids
        self._randomness = randomness
        self._counts = counts
        self._lease = lease
        self._clock = clock
        self._judged: deque[Judged] = deque()
        self._awaited: dict[str, anyio.Event] = {}
        self._wake = anyio.Event()
        self._closed = False

    def settle(self, delivery: Delivery[Envelope], verdict: Verdict) -> None:
        """Have a message settled soon."""
        self._judged.append((delivery, verdict))
        self._wake.set()

    async def settle_now(self, delivery: Delivery[Envelope], verdict: Verdict) -> None:
        """Have a message settled, and return when it is."""
        settled = self._awaited[delivery.tag] = anyio.Event()
        self.settle(delivery, verdict)
        await settled.wait()

    def close(self) -> None:
        """Let `run` return once everything is settled."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        while True:
            if not self._judged:
                if self._closed:
                    return
                self._wake = anyio.Event()
                await self._wake.wait()
                continue
            batch = [self._judged.popleft() for _ in range(min(BATCH_MAX, len(self._judged)))]
            await self._write_until_written(batch)
            crash_point("handler.settled")
            await self._subscription.acknowledge([delivery for delivery, _ in batch])
            self._lease.in_hand.difference_update(
                delivery.message.message_id for delivery, _ in batch if delivery.message.begun
            )
            self._tell(batch)
            if any(delivery.message.lapsed for delivery, _ in batch):
                # Only one of them is at work at a time: the next may come.
                self._lease.on_freed()

    def _tell(self, batch: Sequence[Judged]) -> None:
        if self._awaited:
            for delivery, _ in batch:
                if settled := self._awaited.pop(delivery.tag, None):
                    settled.set()

    async def _write_until_written(self, batch: Sequence[Judged]) -> None:
        if all(_needs_no_writing(judged) for judged in batch):
            self._count(batch, frozenset())
            return
        uncertain = False
        for wait in exponential_backoff(0.1, 5.0, self._randomness):
            try:
                refused = await self._write(batch)
            except _TROUBLE as error:
                uncertain = True
                _log.warning("messages not settled yet", messages=len(batch), error=str(error))
                await anyio.sleep(wait)
            except psycopg.Error as error:
                await self._write_apart(batch, error)
                return
            else:
                # The call before may have been carried out, and only its answer was lost.
                self._count(batch, frozenset() if uncertain else refused)
                return

    async def _write_apart(self, batch: Sequence[Judged], error: psycopg.Error) -> None:
        """Close in by halves on the message whose verdict PostgreSQL refuses, and bury it alone."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write_until_written(batch[:middle])
            await self._write_until_written(batch[middle:])
            return
        delivery, verdict = batch[0]
        reason = f"PostgreSQL refuses what became of it: {error.diag.message_primary or error}"
        _log.error("message is dead", channel=delivery.message.message.channel, reason=reason)
        if isinstance(verdict, Dead) and verdict.reason == _UNWRITABLE:
            # Not even the plain letter: rather than lose the message, fail and be seen.
            raise error
        await self._write_until_written([(delivery, Dead(reason=_UNWRITABLE, attempts=1))])

    async def _write(self, batch: Sequence[Judged]) -> Set[str]:
        """Write a whole batch; a second call after one that failed half-way changes nothing more.

        Every part checks the token, so what the first call did is no longer the second's to do.
        Returns the ids of the messages that were another worker's.
        """
        refused: set[str] = set()
        async with self._database.connection() as connection:
            for outcome in ("done", "discarded"):
                tokens = [
                    _token(delivery)
                    for delivery, verdict in batch
                    if delivery.message.handover and _is_finished(verdict, outcome)
                ]
                if tokens:
                    finished = await outbox_rows.finish(connection, tokens, outcome)
                    refused.update(each.message_id for each in tokens)
                    refused -= finished
            back = [
                _put_back(delivery, verdict)
                for delivery, verdict in batch
                if isinstance(verdict, Later) and delivery.message.handover
            ]
            if back:
                returned = await outbox_rows.put_back(connection, back)
                refused.update(each.token.message_id for each in back)
                refused -= returned
            for delivery, verdict in batch:
                if isinstance(verdict, Dead):
                    if not await self._bury(connection, delivery.message, verdict):
                        refused.add(delivery.message.message_id)
                elif isinstance(verdict, Later) and not delivery.message.handover:
                    await self._adopt(connection, delivery.message, verdict)
        return refused

    async def _bury(self, connection: Connection, envelope: Envelope, verdict: Dead) -> bool:
        letter = self._letter(envelope, verdict.reason, verdict.error)
        if verdict.attempts:
            letter = msgspec.structs.replace(letter, attempts=verdict.attempts)
        async with connection.transaction():
            if envelope.handover:
                token = Token(envelope.message_id, envelope.handover)
                return await outbox_rows.bury_row(connection, token, letter)
            await bury(connection, [letter])
            return True

    async def _adopt(self, connection: Connection, envelope: Envelope, verdict: Later) -> None:
        letter = self._letter(envelope, "", verdict.error)
        if verdict.forgiven:
            letter = msgspec.structs.replace(letter, attempts=letter.attempts - 1)
        await outbox_rows.adopt(
            connection,
            letter,
            after_seconds=verdict.after_seconds,
            available_at=verdict.available_at,
            lapsed=verdict.lapsed,
        )

    def _letter(self, envelope: Envelope, reason: str, error: AttemptError | None) -> DeadLetter:
        return DeadLetter(
            id=self._ids.make(self._clock.now()),
            channel=envelope.message.channel,
            message_id=envelope.message_id,
            message=msgspec.json.encode(envelope.message),
            reason=reason,
            attempts=envelope.attempt,
            correlation_id=envelope.correlation_id,
            published_at=envelope.published_at,
            errors=[error] if error else [],
        )

    def _count(self, batch: Sequence[Judged], refused: Set[str]) -> None:
        counts = self._counts
        for delivery, verdict in batch:
            match verdict:
                case Dropped():
                    counts.duplicate += 1
                case _ if delivery.message.message_id in refused:
                    counts.fenced += 1
                case Finished(outcome="done"):
                    counts.done += 1
                case Finished():
                    counts.discarded += 1
                case Later(error=None):
                    counts.snoozed += 1
                case Later():
                    counts.retry += 1
                case Dead():
                    counts.dead += 1


def _needs_no_writing(judged: Judged) -> bool:
    """Whether the channel alone has to know: no row waits for the verdict."""
    delivery, verdict = judged
    if isinstance(verdict, Finished):
        return verdict.recorded or not delivery.message.handover
    return isinstance(verdict, Dropped) and not delivery.message.begun


def _is_finished(verdict: Verdict, outcome: Literal["done", "discarded"]) -> bool:
    match verdict:
        case Finished():
            return verdict.outcome == outcome and not verdict.recorded
        case Dropped():
            # Done before, and yet a row of ours: it goes, and what was recorded first stays.
            return outcome == "done"
        case _:
            return False


def _token(delivery: Delivery[Envelope]) -> Token:
    return Token(delivery.message.message_id, delivery.message.handover)


def _put_back(delivery: Delivery[Envelope], verdict: Later) -> PutBack:
    return PutBack(
        token=_token(delivery),
        after_seconds=verdict.after_seconds,
        available_at=verdict.available_at,
        error=verdict.error,
        forgiven=verdict.forgiven,
    )
