"""A supervisor at work, for tests: quick restarts, and all that can be seen of it."""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import structlog
from structlog.testing import LogCapture
from structlog.typing import EventDict

import couponflow.kernel.supervisor
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.health import Check, HealthBoard
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.kernel.supervisor import (
    Restarts,
    RoleStatus,
    ShutdownReport,
    State,
    Supervisor,
    nothing_between,
)

PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.001
QUICK = Restarts(first_seconds=0.001, max_seconds=0.004)
NEVER_AGAIN = Restarts(first_seconds=3600.0, max_seconds=3600.0)

Run = Callable[[RoleHandle], Awaitable[None]]


class Longest(random.Random):
    """Randomness that leaves every wait at its longest."""

    def random(self) -> float:
        return 1.0


class Supervised:
    """A supervisor at work, with a manual clock."""

    def __init__(
        self,
        roles: tuple[Role, ...],
        *,
        restarts: Restarts,
        deadline_seconds: float,
        between_stages: Callable[[Stage], Awaitable[None]],
        clock: ManualClock,
    ) -> None:
        self.health = HealthBoard(clock)
        self.stop = anyio.Event()
        self.ended = anyio.Event()
        self.report: ShutdownReport | None = None
        self._scope = anyio.CancelScope()
        self._supervisor = Supervisor(
            roles,
            health=self.health,
            clock=clock,
            randomness=Longest(),
            deadline_seconds=deadline_seconds,
            between_stages=between_stages,
            restarts=restarts,
            cancel_grace_seconds=0.05,
        )

    def status(self, role: str) -> RoleStatus:
        return self._supervisor.states()[role]

    def check(self, role: str) -> Check:
        return self.health.snapshot().checks[f"role:{role}"]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - what is polled sets no event
            await anyio.sleep(POLL_SECONDS)

    async def until_state(self, role: str, state: State) -> None:
        await self.until(lambda: self.status(role).state is state)

    async def run(self) -> None:
        with self._scope:
            self.report = await self._supervisor.run(self.stop)
        self.ended.set()

    async def shut_down(self) -> ShutdownReport:
        self.stop.set()
        await self.ended.wait()
        assert self.report is not None
        return self.report

    def cancel(self) -> None:
        self._scope.cancel()


@asynccontextmanager
async def supervised(
    *roles: Role,
    restarts: Restarts = QUICK,
    deadline_seconds: float = PATIENCE_SECONDS,
    between_stages: Callable[[Stage], Awaitable[None]] = nothing_between,
    clock: ManualClock | None = None,
) -> AsyncGenerator[Supervised, None]:
    """Run the roles; shut them down at the end of the block."""
    world = Supervised(
        roles,
        restarts=restarts,
        deadline_seconds=deadline_seconds,
        between_stages=between_stages,
        clock=clock or ManualClock(),
    )
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(world.run)
            yield world
            world.stop.set()


def capture_log(monkeypatch: pytest.MonkeyPatch) -> list[EventDict]:
    """What the supervisor logs from now on, without asking how the process logs."""
    capture = LogCapture()
    logger = structlog.wrap_logger(
        None,
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
    )
    monkeypatch.setattr(couponflow.kernel.supervisor, "log", logger)
    return capture.entries


async def work_until_stopped(handle: RoleHandle) -> None:
    handle.started()
    await handle.stopping.wait()


async def never_end(handle: RoleHandle) -> None:
    handle.started()
    await anyio.sleep_forever()


def role(name: str, run: Run = work_until_stopped, stage: Stage = Stage.WORK) -> Role:
    return Role(name, stage, run)


def failing_times(count: int, error: BaseException, *, started: bool = True) -> Run:
    """A role that fails so often and then works."""
    left = [error] * count

    async def run(handle: RoleHandle) -> None:
        if left:
            if started:
                handle.started()
            raise left.pop()
        await work_until_stopped(handle)

    return run
