"""One attempt at several messages of a type: their effects and the record of them in one commit.

A transaction of its own costs a message more than its effect does. So a handler that can, is given
several at once where several wait; whatever goes wrong with one of them, all are attempted alone
after that, by the rules of `attempt.py`, and nothing of this attempt is left.
"""

from collections.abc import Awaitable, Callable, Sequence

from couponflow.kernel import outbox_rows
from couponflow.kernel.attempt import COMMIT_DEADLINE_SECONDS
from couponflow.kernel.commit_outcome import certain_transaction
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import Told
from couponflow.kernel.outbox_rows import Token
from couponflow.messages import Message

TOGETHER_MAX = 50
"""More would not be cheaper, and would hold their locks for longer."""

RunTogether = Callable[[Sequence[Told[Message]], Connection], Awaitable[Sequence[str]]]


class SomeWereTaken(Exception):
    """A message of the batch was done before, is another worker's by now, or is there twice.

    Nothing was kept; attempted alone, each finds out what it is.
    """


class ForeignIds(Exception):
    """A handler says that messages had their effect which it was not given: a fault in it."""


def may_go_together(envelope: Envelope) -> bool:
    """Whether it has a row that records it, and no attempt at it counts against it yet."""
    return bool(envelope.handover) and envelope.attempt == 1 and not envelope.lapsed


async def attempt_together(
    database: Database, envelopes: Sequence[Envelope], run: RunTogether
) -> set[str]:
    """Let a handler have its effects; the ids of the messages that are done for good.

    Raises what the handler raises, and what `certain_transaction` does.
    """
    told = [
        Told(
            message=each.message,
            message_id=each.message_id,
            correlation_id=each.correlation_id,
            published_at=each.published_at,
        )
        for each in envelopes
    ]
    async with certain_transaction(
        database, deadline_seconds=COMMIT_DEADLINE_SECONDS
    ) as connection:
        # Before the effects: a rival at one of them waits right here, and is not met half-way.
        held = await outbox_rows.hold(connection, [_token(each) for each in envelopes])
        if len(held) < len(envelopes):
            # Or a stream tells one twice: then it would have its effect twice here, and one record.
            raise SomeWereTaken(f"{len(envelopes)} messages have {len(held)} rows that are ours")
        done = set(await run(told, connection))
        unknown = done - held
        if unknown:
            raise ForeignIds(f"the handler was not given {', '.join(sorted(unknown))}")
        finished = [_token(each) for each in envelopes if each.message_id in done]
        recorded = await outbox_rows.finish(connection, finished, "done")
        if recorded != done:
            raise SomeWereTaken(f"{len(done) - len(recorded)} of {len(done)} were done before")
        crash_point("together.effect")
    crash_point("together.committed")
    return done


def _token(envelope: Envelope) -> Token:
    return Token(envelope.message_id, envelope.handover)
