"""Tasks of one event loop that wait until something about a channel is true."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    ready: Callable[[], bool]
    wake: anyio.Event


class WaitingRoom:
    """Looked at after every change; a condition must hold only until its waiter runs again."""

    def __init__(self) -> None:
        self._waiters: dict[_Waiter, None] = {}

    async def until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()`, without another await after it said so."""
        while not ready():
            waiter = _Waiter(ready, anyio.Event())
            self._waiters[waiter] = None
            try:
                await waiter.wake.wait()
            finally:
                del self._waiters[waiter]

    def look_again(self) -> None:
        for waiter in self._waiters:
            if waiter.ready():
                waiter.wake.set()
