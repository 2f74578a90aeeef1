"""What an operator does with dead letters: send them on their way again, or give them up.

Both work in bounded transactions, oldest letter first, and write each of them into `audit_logs`.
Whoever runs the same at the same time gets other letters.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

import msgspec

from couponflow.kernel.audit_log import AuditEntry, record, record_all
from couponflow.kernel.clock import Clock
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Connection, Database, load_queries
from couponflow.kernel.dead_letters import (
    AttemptError,
    LetterFilter,
    errors_json,
    filter_parameters,
    matching,
)
from couponflow.kernel.identifiers import Uuid7Generator, is_canonical_uuid
from couponflow.kernel.replays import Outcome, Progress, Replayed, Tally, walk
from couponflow.messages import MessageTypes, message_decoder

REPLAY_BATCH = 500
"""Letters replayed in one transaction."""
DISCARD_BATCH = 100
"""Letters discarded in one transaction; each is kept whole in its audit row."""

_MESSAGE_CHARACTERS_KEPT = 1_000_000
_ERRORS_KEPT = 100
_ERROR_CHARACTERS_KEPT = 10_000
_HANDOVERS_A_LIFE = 10_000
_HANDOVERS_MAX = 2_000_000_000

_queries = load_queries("dead_letters")


class LeftLetter(msgspec.Struct, frozen=True):
    """A letter that was not replayed and is still there."""

    id: str
    channel: str
    message_id: str
    outcome: Outcome
    """Refused: it would only die again. Skipped: its message is on its way, or done."""
    reason: str


ReplayReport = Replayed[LeftLetter]


class DiscardReport(msgspec.Struct, frozen=True, kw_only=True):
    """How many letters are gone, and whether some that matched were left because of the limit."""

    discarded: int
    more: bool


class _Locked(msgspec.Struct, frozen=True):
    """A letter that this transaction alone may deal with, as PostgreSQL gives it."""

    id: str
    channel: str
    message_id: str
    message: str
    reason: str
    attempts: int
    correlation_id: str
    published_at: datetime | None
    dead_at: datetime
    errors: list[AttemptError]


class _Outgoing(msgspec.Struct, frozen=True):
    """A letter and the id its message goes by from now on."""

    letter: _Locked
    outbox_id: str


async def replay(
    database: Database,
    letter_filter: LetterFilter,
    *,
    actor: str,
    channels_known: Mapping[str, MessageTypes],
    clock: Clock,
    ids: Uuid7Generator,
    limit: int | None = None,
    expected: int | None = None,
    progress: Progress | None = None,
) -> ReplayReport:
    """Move letters into the outbox, due now, with their history and no attempts counted.

    `expected` is the number that somebody agreed to: no more letters than that, nor than `limit`,
    are looked at. Letters that die while this runs are not. Raises what the database raises; what
    was committed by then stays replayed.
    """
    replaying = _Replaying(actor, letter_filter, channels_known, clock, ids)
    more = await _walk(
        database,
        letter_filter,
        replaying.batch,
        batch=REPLAY_BATCH,
        limit=limit,
        expected=expected,
        progress=progress,
    )
    return replaying.tally.report(more=more)


async def discard(
    database: Database,
    letter_filter: LetterFilter,
    *,
    actor: str,
    clock: Clock,
    ids: Uuid7Generator,
    limit: int | None = None,
    expected: int | None = None,
    progress: Progress | None = None,
) -> DiscardReport:
    """Delete letters; each is kept, with its message and errors, in the details of an audit row.

    `limit` and `expected` are as for `replay`.
    """
    discarded = 0

    async def batch(connection: Connection, letters: Sequence[_Locked]) -> Callable[[], None]:
        await _remove(connection, letters)
        entries = [
            AuditEntry(
                actor=actor,
                action="dead_letters.discard",
                subject=letter.id,
                details={"letter": _kept(letter)},
            )
            for letter in letters
        ]
        await record_all(connection, entries, clock=clock, ids=ids)

        def committed() -> None:
            nonlocal discarded
            discarded += len(letters)

        return committed

    more = await _walk(
        database,
        letter_filter,
        batch,
        batch=DISCARD_BATCH,
        limit=limit,
        expected=expected,
        progress=progress,
    )
    return DiscardReport(discarded=discarded, more=more)


class _Replaying:
    """One replay: how a batch is dealt with, and what became of the letters so far."""

    def __init__(
        self,
        actor: str,
        letter_filter: LetterFilter,
        channels_known: Mapping[str, MessageTypes],
        clock: Clock,
        ids: Uuid7Generator,
    ) -> None:
        self._actor = actor
        self._filter = letter_filter
        self._channels_known = channels_known
        self._clock = clock
        self._ids = ids
        self.tally: Tally[LeftLetter] = Tally()

    async def batch(self, connection: Connection, letters: Sequence[_Locked]) -> Callable[[], None]:
        left: list[LeftLetter] = []
        outgoing = await self._sort(connection, letters, left)
        written = await self._publish(connection, outgoing)
        done = [each for each in outgoing if each.outbox_id in written]
        left += [
            _left(each.letter, "skipped", "its message has come into the outbox meanwhile")
            for each in outgoing
            if each.outbox_id not in written
        ]
        if done:
            await _remove(connection, [each.letter for each in done])
            await self._record(connection, done)
            await connection.execute(_queries["wake_relays"])
            crash_point("dead_letters.replayed")

        return partial(self.tally.add, len(done), left)

    async def _sort(
        self, connection: Connection, letters: Sequence[_Locked], left: list[LeftLetter]
    ) -> list[_Outgoing]:
        """Those that can be sent again; the others go to `left`, each with the reason."""
        now = self._clock.now()
        known = await _known_messages(connection, letters)
        outgoing: dict[str, _Outgoing] = {}
        for letter in letters:
            message_id = letter.message_id.lower()
            outbox_id = message_id if is_canonical_uuid(message_id) else self._ids.make(now)
            if refusal := self._refusal(letter):
                left.append(_left(letter, "refused", refusal))
            elif outbox_id in known:
                left.append(_left(letter, "skipped", known[outbox_id]))
            elif outbox_id in outgoing:
                left.append(_left(letter, "skipped", "another letter has the same message id"))
            else:
                outgoing[outbox_id] = _Outgoing(letter, outbox_id)
        return list(outgoing.values())

    def _refusal(self, letter: _Locked) -> str | None:
        """Why a letter would only die again, if it would."""
        types = self._channels_known.get(letter.channel)
        if types is None:
            return f"this version of couponflow knows no channel {letter.channel!r}"
        try:
            message_decoder(types).decode(letter.message)
        except (msgspec.DecodeError, RecursionError) as error:
            return f"it is no message of the channel: {error}; discard it, or mend its sender"
        return None

    async def _publish(self, connection: Connection, outgoing: Sequence[_Outgoing]) -> set[str]:
        """Write the messages into the outbox; the ids of those that were not there."""
        if not outgoing:
            return set()
        now = self._clock.now()
        letters = [each.letter for each in outgoing]
        histories = [[*letter.errors, self._death(letter, now)] for letter in letters]
        cursor = await connection.execute(
            _queries["publish_again"],
            {
                "ids": [each.outbox_id for each in outgoing],
                "channels": [letter.channel for letter in letters],
                "messages": [letter.message for letter in letters],
                "correlation_ids": [
                    each.letter.correlation_id or each.outbox_id for each in outgoing
                ],
                "errors": [errors_json(history) for history in histories],
                "published_at": [
                    letter.published_at and letter.published_at.timestamp() for letter in letters
                ],
                # Every life adds an error at least, so each begins above the one before.
                "handovers": [
                    min(len(history) * _HANDOVERS_A_LIFE, _HANDOVERS_MAX) for history in histories
                ],
            },
        )
        return {row[0] for row in await cursor.fetchall()}

    def _death(self, letter: _Locked, now: float) -> AttemptError:
        """The line of a message's history that says it was dead, why, and who replayed it."""
        return AttemptError(0, now, "", f"replayed by {self._actor}; dead of: {letter.reason}")

    async def _record(self, connection: Connection, done: Sequence[_Outgoing]) -> None:
        await record(
            connection,
            actor=self._actor,
            action="dead_letters.replay",
            subject=", ".join(sorted({each.letter.channel for each in done})),
            details={
                "filter": self._filter,
                "letters": [
                    {
                        "id": each.letter.id,
                        "channel": each.letter.channel,
                        "message_id": each.letter.message_id,
                        "outbox_id": each.outbox_id,
                        "reason": each.letter.reason[:_ERROR_CHARACTERS_KEPT],
                    }
                    for each in done
                ],
            },
            clock=self._clock,
            ids=self._ids,
        )


async def _walk(
    database: Database,
    letter_filter: LetterFilter,
    deal_with: Callable[[Connection, Sequence[_Locked]], Awaitable[Callable[[], None]]],
    *,
    batch: int,
    limit: int | None,
    expected: int | None,
    progress: Progress | None,
) -> bool:
    """Deal with matching letters in transactions of some; whether a bound left any of them.

    What `deal_with` returns is called after the commit.
    """
    async with database.connection() as connection:
        cursor = await connection.execute(_queries["instant"])
        row = await cursor.fetchone()
    matched = {**filter_parameters(letter_filter), "as_of": row[0] if row else None}

    async def deal_with_some(last: _Locked | None, wanted: int) -> list[_Locked]:
        async with database.transaction() as connection:
            parameters = {**matched, **_after(last), "limit": wanted}
            cursor = await connection.execute(matching("lock_letters"), parameters)
            rows = await cursor.fetchall()
            names = _Locked.__struct_fields__
            letters = [msgspec.convert(dict(zip(names, row, strict=True)), _Locked) for row in rows]
            committed = await deal_with(connection, letters) if letters else None
        if committed is not None:
            committed()
        return letters

    async def any_after(last: _Locked | None) -> bool:
        async with database.connection() as connection:
            parameters = {**matched, **_after(last)}
            cursor = await connection.execute(matching("letters_are_left"), parameters)
            return await cursor.fetchone() == (True,)

    return await walk(
        deal_with_some, any_after, batch=batch, limit=limit, expected=expected, progress=progress
    )


def _after(last: _Locked | None) -> dict[str, datetime | str | None]:
    if last is None:
        return {"after_at": None, "after_id": None}
    return {"after_at": last.dead_at, "after_id": last.id}


async def _known_messages(connection: Connection, letters: Sequence[_Locked]) -> dict[str, str]:
    """Why not to send a message again, by its id, for those that are on their way or done."""
    ids = [found for each in letters if is_canonical_uuid(found := each.message_id.lower())]
    cursor = await connection.execute(_queries["known_messages"], {"ids": ids})
    reasons = {
        "outbox": "its message is in the outbox already",
        "done": "its message was done already; discard the letter",
        "discarded": "its message was discarded by its handler; discard the letter",
    }
    return {message_id: reasons[place] async for message_id, place in cursor}


async def _remove(connection: Connection, letters: Sequence[_Locked]) -> None:
    ids = [letter.id for letter in letters]
    await connection.execute(_queries["remove_letters"], {"ids": ids})


def _left(letter: _Locked, outcome: Outcome, reason: str) -> LeftLetter:
    return LeftLetter(letter.id, letter.channel, letter.message_id, outcome, reason)


def _kept(letter: _Locked) -> dict[str, object]:
    """A letter for the audit log: whole, unless it is larger than any message should be."""
    kept: dict[str, object] = {
        **msgspec.structs.asdict(letter),
        "reason": letter.reason[:_ERROR_CHARACTERS_KEPT],
        "errors": [
            msgspec.structs.replace(each, error=each.error[:_ERROR_CHARACTERS_KEPT])
            for each in letter.errors[-_ERRORS_KEPT:]
        ],
        "message": msgspec.Raw(letter.message.encode()),
    }
    if len(letter.message) > _MESSAGE_CHARACTERS_KEPT:
        kept["message"] = letter.message[:_MESSAGE_CHARACTERS_KEPT]
        kept["message_cut_from_characters"] = len(letter.message)
    return kept
