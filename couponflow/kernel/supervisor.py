"""Keeps every role running, and stops them in order.

Erlang's one_for_one: a role that fails is started again, the others are left alone.
"""

import enum
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence

import anyio
import msgspec
import structlog

from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.clock import Clock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.role import Role, Stage

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

FAILURES_UNTIL_FAILING = 5
"""From so many failures in a row on, a role shows as failing rather than as restarting."""

INTAKE_SHARE = 0.6
"""How much of the shutdown deadline the intake may use, so that the work keeps the rest."""


class ReturnedUnasked(Exception):
    """A role returned although nobody had asked it to stop; it is started again.

    This is a fault in the role: it must run until `handle.stopping` is set, or raise.
    """


class State(enum.StrEnum):
    """What a role is doing."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    STOPPED = "stopped"


class RoleStatus(msgspec.Struct, frozen=True):
    """One role at one instant, for metrics and the command line."""

    state: State
    restarts: int
    last_error: str
    """The type and text of the last failure, or of each in a group; empty when there was none."""


class ShutdownReport(msgspec.Struct, frozen=True):
    """How the shutdown went."""

    seconds: float
    cut_off: tuple[str, ...]
    """The roles that had not finished in their time and were cancelled."""


class Restarts(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed role is started again, for ever."""

    first_seconds: float = 0.2
    max_seconds: float = 30.0
    healthy_seconds: float = 60.0
    """A role that ran so long begins again at `first_seconds` when it fails."""


RESTARTS = Restarts()


async def nothing_between(stage: Stage) -> None:
    """Do nothing between the stages of a shutdown."""


class _Attempt:
    """One run of a role, and the handle that the role has for as long."""

    def __init__(self, actor: "_Actor") -> None:
        self._actor = actor
        self.over = False
        self.started_at: float | None = None

    @property
    def stopping(self) -> anyio.Event:
        return self._actor.stopping

    def started(self) -> None:
        if not self.over and self.started_at is None:
            self.started_at = self._actor.clock.monotonic()
            self._actor.show_started()


class _Actor:
    """A role under supervision: everything known of it, and the loop that keeps it running."""

    def __init__(
        self,
        role: Role,
        *,
        health: HealthBoard,
        clock: Clock,
        randomness: random.Random,
        restarts: Restarts,
        on_started: Callable[[], None],
    ) -> None:
        self.role = role
        self._on_started = on_started
        self.clock = clock
        self.stopping = anyio.Event()
        self.stopped = anyio.Event()
        self.scope = anyio.CancelScope()
        self.restarts = 0
        self.last_error = ""
        self._failures_in_a_row = 0
        self._health = health
        self._check = f"role:{role.name}"
        self._randomness = randomness
        self._policy = restarts
        self._waits = self._fresh_waits()
        # From the first instant: what has not started must not count as ready.
        self._show_down(State.STARTING, "starting")

    def _fresh_waits(self) -> Iterator[float]:
        policy = self._policy
        return exponential_backoff(policy.first_seconds, policy.max_seconds, self._randomness)

    async def supervise(self) -> None:
        """Run the role again and again until it has been asked to stop and has done so."""
        try:
            with self.scope:
                while not self.stopping.is_set():
                    failure = await self._run_once()
                    if failure is not None:
                        await self._recover(failure)
        finally:
            self._show_down(State.STOPPED, "stopped")
            self.stopped.set()

    async def _run_once(self) -> BaseException | None:
        """Run the role to its end; what it failed with, or None when it ended as asked."""
        attempt = _Attempt(self)
        failure: BaseException | None = None
        try:
            await self.role.run(attempt)
            if not self.stopping.is_set():
                failure = ReturnedUnasked(f"role {self.role.name} returned without being asked to")
        except anyio.get_cancelled_exc_class() as error:
            # A library may let a cancellation of its own escape. Nobody cancelled this role, so
            # passing it on would end the role silently.
            if _cancelled_from_outside():
                raise
            failure = error
        except Exception as error:  # noqa: BLE001 - logged, and the role is started again
            failure = error
        finally:
            attempt.over = True
        self._judge_health_of(attempt)
        return failure

    def _judge_health_of(self, attempt: _Attempt) -> None:
        if attempt.started_at is None:
            return
        if self.clock.monotonic() - attempt.started_at >= self._policy.healthy_seconds:
            self._failures_in_a_row = 0
            self._waits = self._fresh_waits()

    async def _recover(self, failure: BaseException) -> None:
        """Tell everybody about the failure, and wait before the next attempt."""
        self._failures_in_a_row += 1
        self.last_error = _described(failure)
        if self.stopping.is_set():
            log.error("role_failed_while_stopping", role=self.role.name, exc_info=failure)
            return
        wait_seconds = next(self._waits)
        log.error(
            "role_failed",
            role=self.role.name,
            failures_in_a_row=self._failures_in_a_row,
            restart_in_seconds=round(wait_seconds, 3),
            exc_info=failure,
        )
        self._show_down(State.BACKING_OFF, self._trouble())
        with anyio.move_on_after(wait_seconds):
            await self.stopping.wait()
        if not self.stopping.is_set():
            self.restarts += 1
            self._show_down(State.STARTING, self._trouble())

    def _trouble(self) -> str:
        if self._failures_in_a_row < FAILURES_UNTIL_FAILING:
            return f"restarting, last error {self.last_error}"
        return f"failing: {self.restarts} restarts, last error {self.last_error}"

    def show_started(self) -> None:
        if not self.stopping.is_set():
            self.state = State.RUNNING
        history = f"restarted {self.restarts} times, last error {self.last_error}"
        self._health.report(self._check, True, history if self._failures_in_a_row else "")
        self._on_started()

    def _show_down(self, state: State, detail: str) -> None:
        self.state = state
        self._health.report(self._check, False, detail)

    def ask_to_stop(self) -> None:
        if not self.stopped.is_set():
            self.state = State.STOPPING
        self.stopping.set()

    def status(self) -> RoleStatus:
        return RoleStatus(self.state, self.restarts, self.last_error)


def _described(failure: BaseException) -> str:
    """Type and text; of a group those of each error in it, for the group's own say nothing."""
    if isinstance(failure, BaseExceptionGroup):
        described = [_described(each) for each in failure.exceptions]
        return "; ".join(dict.fromkeys(described))
    return f"{type(failure).__name__}: {failure}"


def _cancelled_from_outside() -> bool:
    return anyio.current_effective_deadline() == float("-inf")


class Supervisor:
    """Runs roles until it is asked to stop, and then stops them stage by stage.

    Each role has a task and a cancel scope of its own. Its health check is `role:<name>`.
    Between one stage and the next `between_stages` is called with the stage that has ended.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        health: HealthBoard,
        clock: Clock,
        randomness: random.Random,
        deadline_seconds: float,
        between_stages: Callable[[Stage], Awaitable[None]] = nothing_between,
        restarts: Restarts = RESTARTS,
        cancel_grace_seconds: float = 1.0,
    ) -> None:
        names = [role.name for role in roles]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each role needs a name of its own; twice here: {', '.join(twice)}")
        self._clock = clock
        self._deadline_seconds = deadline_seconds
        self._between_stages = between_stages
        self._cancel_grace_seconds = cancel_grace_seconds
        self._actors = [
            _Actor(
                role,
                health=health,
                clock=clock,
                randomness=randomness,
                restarts=restarts,
                on_started=self._look_whether_all_run,
            )
            for role in roles
        ]
        self.all_running = anyio.Event()
        """Set once every role has started; stays set when one fails later."""

    def _look_whether_all_run(self) -> None:
        if all(actor.state is State.RUNNING for actor in self._actors):
            self.all_running.set()

    def states(self) -> dict[str, RoleStatus]:
        """Every role as it is now, by name."""
        return {actor.role.name: actor.status() for actor in self._actors}

    async def run(self, stop: anyio.Event) -> ShutdownReport:
        """Run the roles until `stop` is set; return when all of them have ended. For one call.

        The stages together have `deadline_seconds`, the first of them at most 60% of it, and the
        last never less than `cancel_grace_seconds`. Roles
        that are late are cancelled and get `cancel_grace_seconds` more. A role that ignores even
        its cancellation is named in the log and still waited for, since its task cannot be left
        behind: an operator's second signal ends the process then.
        """
        async with anyio.create_task_group() as group:
            for actor in self._actors:
                group.start_soon(actor.supervise, name=f"role {actor.role.name}")
            await stop.wait()
            begun_at = self._clock.monotonic()
            cut_off = await self._stop_all()
        return ShutdownReport(self._clock.monotonic() - begun_at, tuple(cut_off))

    async def _stop_all(self) -> list[str]:
        begun_at = anyio.current_time()
        ends_at = begun_at + self._deadline_seconds
        intake_ends_at = begun_at + self._deadline_seconds * INTAKE_SHARE
        cut_off = await self._stop_stage(Stage.INTAKE, intake_ends_at)
        await self._pass_between(Stage.INTAKE, ends_at)
        cut_off += await self._stop_stage(Stage.WORK, ends_at)
        # Even when the work has used up the time: a lease is given back in an instant.
        foundation_ends_at = max(ends_at, anyio.current_time() + self._cancel_grace_seconds)
        return cut_off + await self._stop_stage(Stage.FOUNDATION, foundation_ends_at)

    async def _stop_stage(self, stage: Stage, ends_at: float) -> list[str]:
        """Stop the roles of a stage; the names of those that had to be cancelled."""
        actors = [actor for actor in self._actors if actor.role.stage is stage]
        for actor in actors:
            actor.ask_to_stop()
        late = await _still_going(actors, ends_at)
        if not late:
            return []
        cut_off = [actor.role.name for actor in late]
        log.error("roles_cut_off", stage=stage.name.lower(), roles=cut_off)
        for actor in late:
            actor.scope.cancel()
        stuck = await _still_going(late, anyio.current_time() + self._cancel_grace_seconds)
        if stuck:
            log.error("roles_ignore_cancellation", roles=[actor.role.name for actor in stuck])
        return cut_off

    async def _pass_between(self, ended: Stage, ends_at: float) -> None:
        """Call the hook; the next stage is stopped whatever becomes of it."""
        with anyio.CancelScope(deadline=ends_at) as scope:
            try:
                await self._between_stages(ended)
            except Exception:
                log.exception("between_stages_failed", ended=ended.name.lower())
        if scope.cancelled_caught:
            log.error("between_stages_cut_off", ended=ended.name.lower())


async def _still_going(actors: Sequence[_Actor], until: float) -> list[_Actor]:
    """Wait for the actors to stop, but not past `until`; those that have not."""
    with anyio.CancelScope(deadline=until):
        for actor in actors:
            await actor.stopped.wait()
    return [actor for actor in actors if not actor.stopped.is_set()]
