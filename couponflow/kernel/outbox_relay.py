"""The relay: claims what is due in the outbox and hands it to the channels.

NOTIFY says at once that something was published; polling finds what became due or was missed. Two
relays never claim one row (SKIP LOCKED), and what a relay has claimed is its own until its worker's
lease ends.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import msgspec
import psycopg
import structlog

from couponflow.config import OutboxSettings
from couponflow.kernel import outbox_rows
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.clock import Clock
from couponflow.kernel.controls import ChannelControls
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.dead_letters import AttemptError, DeadLetter
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox import NOTIFY_CHANNEL
from couponflow.kernel.outbox_rows import OutboxRow, PutBack, Token
from couponflow.kernel.outbox_sinks import Sink
from couponflow.kernel.role import RoleHandle
from couponflow.kernel.workers import WorkerLease
from couponflow.messages import CHANNELS, Message, message_decoder

CHECK = "outbox:relay"
GIVE_BACK_SECONDS = 2.0
DUE_SECONDS = 0.02
"""When to look again for what was due, and yet not to be had."""
GATHER_SECONDS = 0.005
"""The least between two claims of a channel; a message that comes after a pause is not delayed."""
PRUNE_SECONDS = 600.0
PRUNE_ROWS = 5_000
LISTEN_SECONDS = 30.0
UNCERTAIN_SECONDS = 60.0
"""For how long after a broken connection a claim may still be carried out unheard of."""

_TROUBLE = (DatabaseAway, psycopg.OperationalError)
_log = structlog.get_logger("couponflow.outbox")


@dataclass(frozen=True, slots=True)
class RelayParts:
    """What the relay is built from."""

    settings: OutboxSettings
    sinks: Sequence[Sink]
    database: Database
    lease: WorkerLease
    controls: ChannelControls
    health: HealthBoard
    ids: Uuid7Generator
    clock: Clock
    randomness: random.Random


class OutboxRelay:
    """One task a channel, one that listens, and one that forgets what was done long ago."""

    def __init__(self, parts: RelayParts) -> None:
        self._parts = parts
        one_at_a_time = anyio.Lock()
        self._feeders = [_Feeder(parts, sink, one_at_a_time) for sink in parts.sinks]

    async def run(self, handle: RoleHandle) -> None:
        """Relay until told to stop; what is claimed and on no channel then is given back."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen)
            tasks.start_soon(self._prune)
            for feeder in self._feeders:
                tasks.start_soon(feeder.run)
            self._parts.lease.on_freed = self.wake
            handle.started()
            await handle.stopping.wait()
            tasks.cancel_scope.cancel()

    def wake(self) -> None:
        """Have every channel looked at now."""
        for feeder in self._feeders:
            feeder.wake()

    async def _listen(self) -> None:
        """Hear what is published, on a connection that is dialled anew for ever."""
        while True:
            for wait in exponential_backoff(0.2, 5.0, self._parts.randomness):
                try:
                    async with self._parts.database.listen(NOTIFY_CHANNEL) as notifications:
                        # What was published while nobody listened.
                        self.wake()
                        while True:
                            if await notifications.wait(LISTEN_SECONDS):
                                self.wake()
                except _TROUBLE as error:
                    _log.warning("outbox not listened to", error=str(error))
                await anyio.sleep(wait)

    async def _prune(self) -> None:
        while True:
            try:
                async with self._parts.database.connection() as connection:
                    days = self._parts.settings.done_days
                    while await outbox_rows.prune_processed(connection, days, PRUNE_ROWS):
                        await anyio.lowlevel.checkpoint()
            except _TROUBLE as error:
                _log.warning("processed messages not pruned", error=str(error))
            await anyio.sleep(PRUNE_SECONDS)


class _Feeder:
    """Brings what is due on one channel to its sink."""

    def __init__(self, parts: RelayParts, sink: Sink, one_at_a_time: anyio.Lock) -> None:
        """`one_at_a_time` is held while a message that may kill its worker is claimed."""
        self._one_at_a_time = one_at_a_time
        self._parts = parts
        self._sink = sink
        self._channel = sink.channel
        self._woken = anyio.Event()
        self._uncertain_until = float("-inf")
        self._decode: Callable[[str], Message] = message_decoder(CHANNELS[sink.channel]).decode

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        parts = self._parts
        waits = exponential_backoff(0.1, 5.0, parts.randomness)
        # A relay before this one may have crashed.
        self._uncertain_until = parts.clock.monotonic() + UNCERTAIN_SECONDS
        while True:
            await parts.controls.until_open(self._channel)
            self._woken = anyio.Event()
            try:
                pause_seconds = await self._hand_over()
            except _TROUBLE as error:
                parts.health.report(CHECK, False, f"{self._channel}: {error}")
                self._uncertain_until = parts.clock.monotonic() + UNCERTAIN_SECONDS
                await anyio.sleep(next(waits))
                continue
            parts.health.report(CHECK, True)
            waits = exponential_backoff(0.1, 5.0, parts.randomness)
            if pause_seconds > 0:
                with anyio.move_on_after(pause_seconds):
                    await self._woken.wait()

    async def _hand_over(self) -> float:
        """Hand over one batch; how long to wait before the next, unless somebody wakes it."""
        settings, owner = self._parts.settings, self._parts.lease.worker_id
        if not owner:
            return settings.poll_seconds
        begun = self._sink.begins
        in_hand = self._parts.lease.in_hand
        async with self._parts.database.connection() as connection:
            if self._parts.clock.monotonic() < self._uncertain_until:
                await outbox_rows.release_unknown(connection, self._channel, owner, in_hand)
            async with self._one_at_a_time:
                rows = await outbox_rows.claim_lapsed(connection, self._channel, owner, begun=begun)
            rows += await outbox_rows.claim(
                connection, self._channel, owner, settings.batch_rows, begun=begun
            )
            if not rows:
                next_seconds = await outbox_rows.seconds_to_next(connection, self._channel)
                if next_seconds == 0:
                    # It became due just now, or another relay has it for an instant.
                    return min(settings.poll_seconds, DUE_SECONDS)
                return min(settings.poll_seconds, max(0.001, next_seconds or settings.poll_seconds))
        await self._put(rows)
        if len(rows) < settings.batch_rows:
            # Whoever publishes in a stream of small transactions is better served in batches.
            await anyio.sleep(GATHER_SECONDS)
        return 0.0

    async def _put(self, rows: Sequence[OutboxRow]) -> None:
        """Put claimed messages on the channel; if that fails they are free again."""
        # What goes to a stream is in the hands of whoever begins it, who may have done so by now.
        in_hand = self._parts.lease.in_hand if self._sink.begins else set[str]()
        try:
            in_hand.update(row.message_id for row in rows)
            envelopes, broken = self._open(rows)
            if broken:
                await self._put_off(broken)
            if envelopes:
                await self._sink.put(envelopes)
            settled = rows if self._sink.settles else [row for row, _ in broken]
            in_hand.difference_update(row.message_id for row in settled)
        except BaseException:
            in_hand.difference_update(row.message_id for row in rows)
            await self._give_back([Token(row.message_id, row.handover) for row in rows])
            raise

    def _open(
        self, rows: Sequence[OutboxRow]
    ) -> tuple[list[Envelope], list[tuple[OutboxRow, str]]]:
        envelopes: list[Envelope] = []
        broken: list[tuple[OutboxRow, str]] = []
        for row in rows:
            try:
                message = self._decode(row.message)
            except msgspec.DecodeError as error:
                broken.append((row, f"not a message of {self._channel}: {error}"))
                continue
            envelopes.append(
                Envelope(
                    message_id=row.message_id,
                    message=message,
                    correlation_id=row.correlation_id,
                    published_at=row.published_at,
                    attempt=row.attempt,
                    handover=row.handover,
                    begun=self._sink.begins,
                    lapsed=row.lapsed,
                )
            )
        return envelopes, broken

    async def _put_off(self, broken: Sequence[tuple[OutboxRow, str]]) -> None:
        """Leave what does not decode to a newer version; bury what none has come for."""
        parts = self._parts
        now, name = parts.clock.now(), parts.lease.name
        errors = [
            (Token(row.message_id, row.handover), AttemptError(row.attempt, now, name, reason))
            for row, reason in broken
        ]
        async with parts.database.connection() as connection:
            later = await outbox_rows.put_off(connection, parts.lease.worker_id, errors)
        dead = [(row, reason) for row, reason in broken if row.message_id not in later]
        for row, reason in dead:
            letter = DeadLetter(
                id=parts.ids.make(now),
                channel=self._channel,
                message_id=row.message_id,
                message=row.message.encode(),
                reason=reason,
                attempts=row.attempt,
                correlation_id=row.correlation_id,
                published_at=row.published_at,
            )
            async with parts.database.transaction() as connection:
                token = Token(row.message_id, row.handover)
                await outbox_rows.bury_row(connection, token, letter)
        _log.error(
            "messages that this version cannot read",
            channel=self._channel,
            put_off=len(later),
            dead=len(dead),
            reason=broken[0][1],
        )

    async def _give_back(self, tokens: Sequence[Token]) -> None:
        # What a stream or a handler has by now has changed hands, and is not touched.
        forgiven = self._sink.begins
        back = [PutBack(token=token, forgiven=forgiven, survived=False) for token in tokens]
        with anyio.move_on_after(GIVE_BACK_SECONDS, shield=True):
            try:
                async with self._parts.database.connection() as connection:
                    await outbox_rows.put_back(connection, back)
            except _TROUBLE as error:
                _log.warning("messages wait for the lease to end", error=str(error))
