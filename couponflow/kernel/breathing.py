"""Leaving the interpreter to others in the middle of long work."""

import anyio

PAUSE_SECONDS = 0.001


async def breathe() -> None:
    """Pause between two slices of work that is Python through and through.

    The redirector answers on a thread of its own, and only one thread at a time runs Python. A
    slice of a third of a millisecond followed by a real pause costs it that third at most; a
    loop without pauses would make every single redirect wait for its turn.
    """
    await anyio.sleep(PAUSE_SECONDS)
