"""Sending events on their way again, as an operator asks for.

A replay is idempotent: what follows from an event has the same ids as before, so that what had its
effect has it no second time, for as long as `[outbox] done_days` remembers that it is done. While
one replay of an event is on its way, no other begins.

A processed event is published anew, and so is one that an operator gave up, if it is named. Of a
dead one its dead letters are replayed, so that their history and their place in `audit_logs` are
what they always are.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, assert_never

import msgspec

from couponflow.kernel import dead_letter_replay
from couponflow.kernel.audit_log import record
from couponflow.kernel.clock import Clock
from couponflow.kernel.cursors import cursor_after, place_of
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.dead_letters import LetterFilter
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox import Outgoing, publish_many
from couponflow.kernel.replays import Outcome, Progress, Replayed, Tally, walk
from couponflow.messages import MessageTypes, WebhookAccepted
from couponflow.webhooks.event_filter import EventFilter, EventStatus, compose, filter_parameters
from couponflow.webhooks.log_reading import EventLetter, ask, ids_not_found, letters_of

REPLAY_BATCH = 500
"""Events published in one transaction, and letters replayed in one."""

_ON_ITS_WAY = "it is on its way already"
_GIVEN_UP = "an operator gave it up; a replay that names its id takes it up again"


class LeftEvent(msgspec.Struct, frozen=True):
    """An event that was not replayed."""

    id: str
    source: str
    outcome: Outcome
    """Refused: its sender was not believed, an operator gave it up, or it would only die again.
    Skipped: it is on its way, or done."""
    reason: str


class EventReplayReport(Replayed[LeftEvent], frozen=True, kw_only=True):
    """What became of the events that a replay looked at."""

    taken_up: list[str]
    """Those of the replayed that an operator had given up."""
    not_found: list[str]
    """Ids that were asked for and no event has."""
    next_cursor: str | None
    """Where another replay goes on, if this one left any because of its limit."""


class _Event(msgspec.Struct, frozen=True):
    id: str
    source: str
    verdict: str
    received_at: float
    status: EventStatus

    @property
    def cursor(self) -> str:
        return cursor_after(datetime.fromtimestamp(self.received_at, UTC), self.id)

    def left(self, outcome: Outcome, reason: str) -> LeftEvent:
        return LeftEvent(self.id, self.source, outcome, reason)


class _Batch(msgspec.Struct):
    """Some events, and what is to be done or was done about them."""

    events: list[_Event]
    dead: list[_Event] = []
    letters: list[EventLetter] = []
    published: dict[str, str] = {}
    """The ids of events and of the messages that tell of them again."""
    taken_up: list[str] = []
    """Of those the ones that an operator had given up."""
    left: list[LeftEvent] = []


async def replay_events(
    database: Database,
    event_filter: EventFilter,
    *,
    actor: str,
    channels_known: Mapping[str, MessageTypes],
    clock: Clock,
    ids: Uuid7Generator,
    limit: int | None = None,
    expected: int | None = None,
    cursor: str | None = None,
    progress: Progress | None = None,
) -> EventReplayReport:
    """Replay the events that match, oldest first, in transactions of some.

    `expected` is the number that somebody agreed to: no more events than that, nor than `limit`,
    are looked at. `cursor` is the `next_cursor` of a replay before, to go on after it. Raises
    `CursorInvalid`, and what the database raises; what was committed by then stays replayed.
    """
    after_id = place_of(cursor, things="replayed events")[1]
    async with database.connection() as connection:
        not_found = await ids_not_found(connection, event_filter)
    replaying = _Replaying(database, event_filter, actor, channels_known, clock, ids, after_id)
    more = await walk(
        replaying.batch,
        replaying.any_after,
        batch=REPLAY_BATCH,
        limit=limit,
        expected=expected,
        progress=progress,
    )
    last = replaying.last
    return EventReplayReport(
        **msgspec.structs.asdict(replaying.tally.report(more=more)),
        taken_up=replaying.taken_up,
        not_found=not_found,
        next_cursor=(last.cursor if last else cursor) if more else None,
    )


class _Replaying:
    """One replay: how a batch is dealt with, and what became of the events so far."""

    def __init__(
        self,
        database: Database,
        event_filter: EventFilter,
        actor: str,
        channels_known: Mapping[str, MessageTypes],
        clock: Clock,
        ids: Uuid7Generator,
        after_id: uuid.UUID | None,
    ) -> None:
        self._database = database
        self._filter = event_filter
        self._actor = actor
        self._channels_known = channels_known
        self._clock = clock
        self._ids = ids
        self._after_id = after_id
        self.tally: Tally[LeftEvent] = Tally()
        self.taken_up: list[str] = []
        self.last: _Event | None = None

    async def batch(self, last: _Event | None, wanted: int) -> list[_Event]:
        """Deal with the next events; they are returned, whatever became of them."""
        async with self._database.transaction() as connection:
            batch = _Batch(await self._next(connection, last, wanted))
            unharmed = self._sort(batch)
            batch.letters = await letters_of(connection, [event.id for event in batch.dead])
            await _publish(connection, batch, unharmed)
            if batch.published or batch.letters:
                await self._record(connection, batch)
        replayed = len(batch.published) + await self._replay_letters(batch)
        self.tally.add(replayed, batch.left)
        self.taken_up += batch.taken_up
        self.last = batch.events[-1] if batch.events else last
        return batch.events

    async def any_after(self, last: _Event | None) -> bool:
        query = compose("events_are_left", self._filter)
        async with self._database.connection() as connection:
            return await ask(connection, query, self._after(last)) == [(True,)]

    async def _next(self, connection: Connection, last: _Event | None, wanted: int) -> list[_Event]:
        query = compose("events_to_replay", self._filter)
        rows = await ask(connection, query, {**self._after(last), "limit": wanted})
        return [_Event(*row) for row in rows]

    def _after(self, last: _Event | None) -> dict[str, object]:
        after_id = self._after_id if last is None else last.id
        return {**filter_parameters(self._filter), "after_id": after_id}

    def _sort(self, batch: _Batch) -> list[_Event]:
        """Those that are to be published anew; the others go where they belong in the batch."""
        unharmed: list[_Event] = []
        for event in batch.events:
            match event.status:
                case "processed":
                    unharmed.append(event)
                case "given-up" if self._filter.names_events:
                    unharmed.append(event)
                case "given-up":
                    batch.left.append(event.left("refused", _GIVEN_UP))
                case "dead":
                    batch.dead.append(event)
                case "waiting":
                    batch.left.append(event.left("skipped", _ON_ITS_WAY))
                case "refused":
                    reason = f"it cannot be replayed: its sender was not believed ({event.verdict})"
                    batch.left.append(event.left("refused", reason))
                case _:
                    assert_never(event.status)
        return unharmed

    async def _record(self, connection: Connection, batch: _Batch) -> None:
        await record(
            connection,
            actor=self._actor,
            action="webhooks.replay",
            subject=self._filter.describe(),
            details={
                "filter": self._filter.on_record(),
                "webhook_ids": list(batch.published),
                "message_ids": list(batch.published.values()),
                # What became of these is in the entries of their own replay.
                "letter_ids": [letter.id for letter in batch.letters],
            },
            clock=self._clock,
            ids=self._ids,
        )

    async def _replay_letters(self, batch: _Batch) -> int:
        """Replay the letters of dead events; how many events go on by that."""
        outcomes: dict[str, dict[str, _LetterOutcome]] = {}
        for start in range(0, len(batch.letters), REPLAY_BATCH):
            some = batch.letters[start : start + REPLAY_BATCH]
            for letter, outcome in zip(some, await self._outcomes(some), strict=True):
                of_event = outcomes.setdefault(letter.webhook_id, {})
                of_event.setdefault(outcome.kind, outcome)
        replayed = 0
        for event in batch.dead:
            of_event = outcomes.get(event.id, {})
            if "replayed" in of_event:
                replayed += 1
            elif refused := of_event.get("refused"):
                batch.left.append(event.left("refused", refused.reason))
            else:
                skipped = of_event.get("skipped", _GONE)
                batch.left.append(event.left("skipped", skipped.reason))
        return replayed

    async def _outcomes(self, letters: Sequence[EventLetter]) -> list["_LetterOutcome"]:
        report = await dead_letter_replay.replay(
            self._database,
            LetterFilter(ids=tuple(letter.id for letter in letters)),
            actor=self._actor,
            channels_known=self._channels_known,
            clock=self._clock,
            ids=self._ids,
        )
        left = {each.id: _LetterOutcome(each.outcome, each.reason) for each in report.left}
        # What somebody else replays at the same moment is not named; it is on its way as well.
        others = _LetterOutcome("replayed") if report.replayed else _GONE
        return [left.get(letter.id, others) for letter in letters]


class _LetterOutcome(msgspec.Struct, frozen=True):
    kind: Literal["replayed", "refused", "skipped"]
    reason: str = ""


_GONE = _LetterOutcome("skipped", "somebody else deals with its dead letters")


async def _publish(connection: Connection, batch: _Batch, unharmed: Sequence[_Event]) -> None:
    outgoing = [
        Outgoing(
            message=WebhookAccepted(
                webhook_id=event.id, source=event.source, received_at=event.received_at
            ),
            dedup_key=f"replay:{event.id}",
            correlation_id=event.id,
        )
        for event in unharmed
    ]
    written = await publish_many(connection, outgoing)
    for event, message_id in zip(unharmed, written, strict=True):
        if message_id is None:
            batch.left.append(event.left("skipped", _ON_ITS_WAY))
        else:
            batch.published[event.id] = message_id
            if event.status == "given-up":
                batch.taken_up.append(event.id)
