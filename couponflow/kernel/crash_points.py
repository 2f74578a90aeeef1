"""Named instants at which a crash would be dangerous, so that tests can die exactly there.

`COUPONFLOW_CRASH_POINT=outbox.claimed:3` kills this process with SIGKILL at the third time it comes
by that point. Without the variable a point does nothing. Every point has a test that dies at it,
starts again and audits what is left: `tests/system/test_crash_points.py`.
"""

import os
import signal

VARIABLE = "COUPONFLOW_CRASH_POINT"

CRASH_POINTS: dict[str, str] = {
    "outbox.published": "a message is written in a transaction that is not committed yet",
    "outbox.claimed": "rows are claimed and committed so, and on no channel yet",
    "outbox.streamed": "rows are in the stream, and PostgreSQL does not know yet",
    "outbox.recorded": "rows are in the stream, and PostgreSQL knows",
    "outbox.reset": "a message that its stream lost is free to be handed over again",
    "outbox.lapsed": "a dead worker's messages are freed in a transaction not committed yet",
    "handler.begun": "the attempt is recorded, and no work was done",
    "handler.effect": "the effect is written in a transaction that is not committed yet",
    "handler.committed": "effect and record are committed, and the channel does not know",
    "handler.returned": "the handler is done, and nobody but it knows",
    "together.effect": "the effects of several messages are written and not committed yet",
    "together.committed": "they are committed with their records, and the channel does not know",
    "handler.settled": "PostgreSQL knows what became of the messages, the channel does not",
    "channel.published": "the stream has the messages, and their sender does not know",
    "channel.received": "the stream counts messages as delivered that nobody has seen",
    "channel.claimed": "messages of a dead consumer are taken over, and nobody has seen them",
    "channel.acknowledged": "the stream has let go of messages, and their consumer does not know",
    "channel.malformed": "an ill-formed entry is a dead letter, and still in the stream",
    "dead_letters.replayed": "a replay is written in a transaction that is not committed yet",
    "webhooks.verified": "events are verified, nothing is written, and nobody was answered",
    "webhooks.stored": "events are in PostgreSQL with their messages, and nobody was answered",
    "clicks.stored": "clicks are rows, and their channel does not know",
    "clicks.handed_over": "a channel has taken clicks, and the journal's checkpoint is behind",
}
"""Every point, and what has and has not happened there."""


class CrashPointUnknown(Exception):
    """COUPONFLOW_CRASH_POINT names no point there is, or is not `name` or `name:count`.

    It is for tests: unset it.
    """


class _Armed:
    """The point that this process is to die at, and after how many visits."""

    def __init__(self) -> None:
        self.name = ""
        self.visits_left = 0


_armed = _Armed()


def arm(text: str) -> None:
    """Make this process die as the variable's text says; an empty text disarms."""
    name, _, count = text.partition(":")
    if name and (name not in CRASH_POINTS or not (count or "1").isdigit() or count == "0"):
        raise CrashPointUnknown(
            f"{VARIABLE}={text} is not one of {', '.join(sorted(CRASH_POINTS))}, "
            "with a count of at least 1 after a colon; unset it outside tests"
        )
    _armed.name, _armed.visits_left = name, int(count or 1)


def crash_point(name: str) -> None:
    """Die here if this is the point, and the visit, that the variable names."""
    if _armed.name != name:
        return
    _armed.visits_left -= 1
    if not _armed.visits_left:
        os.kill(os.getpid(), signal.SIGKILL)
