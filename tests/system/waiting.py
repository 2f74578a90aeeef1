"""Waiting for another process: it sets no event of ours, so it is asked again and again."""

from collections.abc import Awaitable, Callable

import anyio

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 20.0


async def until(
    condition: Callable[[], Awaitable[bool]], *, seconds: float = PATIENCE_SECONDS
) -> None:
    """Return once the condition holds; `TimeoutError` if that takes longer."""
    with anyio.fail_after(seconds):
        while True:
            if await condition():
                return
            await anyio.sleep(POLL_SECONDS)
