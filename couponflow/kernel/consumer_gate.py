"""Whether a consumer may take more messages now."""

import anyio

from couponflow.kernel.breaker import DeadLetterBreaker
from couponflow.kernel.controls import ChannelControls


class Gate:
    """Whether a consumer may take more: not while it is paused, resting or told to leave."""

    def __init__(
        self,
        channel: str,
        controls: ChannelControls,
        breaker: DeadLetterBreaker,
        leave: anyio.Event,
        stopping: anyio.Event,
    ) -> None:
        """`stopping` ends the waiting: what a closed gate keeps back stays in PostgreSQL."""
        self._channel = channel
        self._controls = controls
        self._breaker = breaker
        self._leave = leave
        self._stopping = stopping
        self._scope: anyio.CancelScope | None = None

    async def watch(self) -> None:
        """Interrupt a consumer that waits for messages when it should not take any."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_pauses)
            await self._leave.wait()
            self._interrupt()
            tasks.cancel_scope.cancel()

    async def _watch_pauses(self) -> None:
        while True:
            await self._controls.until_paused(self._channel)
            self._interrupt()
            await self._controls.until_open(self._channel)

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def opened(self) -> bool:
        """Wait until more may be taken; False when the consumer is to leave."""
        while not self._leave.is_set():
            if not self._controls.of(self._channel).paused and self._breaker.allows():
                return True
            if self._stopping.is_set():
                return False
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_on, self._leave, tasks.cancel_scope)
                tasks.start_soon(_cancel_on, self._stopping, tasks.cancel_scope)
                await self._controls.until_open(self._channel)
                await self._breaker.until_allowed()
                tasks.cancel_scope.cancel()
        return False

    def interruptible(self) -> anyio.CancelScope:
        self._scope = anyio.CancelScope()
        if self._leave.is_set() or self._controls.of(self._channel).paused:
            self._scope.cancel()
        return self._scope

    def take_interrupted(self) -> bool:
        """Whether the latest interruptible block was cut short."""
        scope, self._scope = self._scope, None
        return scope is not None and scope.cancelled_caught


async def _cancel_on(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
