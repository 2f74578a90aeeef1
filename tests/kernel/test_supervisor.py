"""Which role is restarted when, and what is said of it."""

import asyncio

import anyio
import pytest
from structlog.typing import EventDict

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.role import RoleHandle
from couponflow.kernel.supervisor import RoleStatus, ShutdownReport, State, Supervisor
from tests.kernel.supervision import (
    NEVER_AGAIN,
    Longest,
    capture_log,
    failing_times,
    role,
    supervised,
    work_until_stopped,
)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[EventDict]:
    return capture_log(monkeypatch)


def restart_waits(logged: list[EventDict]) -> list[float]:
    return [entry["restart_in_seconds"] for entry in logged if entry["event"] == "role_failed"]


async def test_a_role_goes_from_starting_to_stopped() -> None:
    ready = anyio.Event()
    finish = anyio.Event()

    async def run(handle: RoleHandle) -> None:
        await ready.wait()
        handle.started()
        await handle.stopping.wait()
        await finish.wait()

    async with supervised(role("clicks", run)) as world:
        assert world.status("clicks") == RoleStatus(State.STARTING, 0, "")
        assert world.check("clicks").ok is False
        assert world.check("clicks").detail == "starting"
        ready.set()
        await world.until_state("clicks", State.RUNNING)
        assert world.check("clicks").ok is True
        assert world.check("clicks").detail == ""
        world.stop.set()
        await world.until_state("clicks", State.STOPPING)
        assert world.check("clicks").ok is True
        finish.set()
        await world.ended.wait()
        assert world.status("clicks") == RoleStatus(State.STOPPED, 0, "")
        assert world.check("clicks").ok is False
        assert world.check("clicks").detail == "stopped"
        assert world.report == ShutdownReport(0.0, ())


async def test_a_failed_role_is_restarted_and_the_others_are_left_alone(
    logged: list[EventDict],
) -> None:
    runs: list[str] = []

    async def steady(handle: RoleHandle) -> None:
        runs.append("steady")
        await work_until_stopped(handle)

    flaky = role("flaky", failing_times(2, ValueError("no database")))
    async with supervised(role("steady", steady), flaky) as world:
        await world.until(lambda: world.status("flaky").restarts == 2)
        await world.until_state("flaky", State.RUNNING)
        assert world.status("flaky").last_error == "ValueError: no database"
        assert world.check("flaky").ok is True
        assert world.check("flaky").detail == (
            "restarted 2 times, last error ValueError: no database"
        )
        assert world.status("steady") == RoleStatus(State.RUNNING, 0, "")
        assert runs == ["steady"]
    assert [entry["event"] for entry in logged] == ["role_failed", "role_failed"]


async def test_a_failure_is_logged_with_its_traceback(logged: list[EventDict]) -> None:
    failure = ValueError("no database")
    async with supervised(role("flaky", failing_times(1, failure))) as world:
        await world.until_state("flaky", State.RUNNING)
    assert logged == [
        {
            "event": "role_failed",
            "log_level": "error",
            "role": "flaky",
            "failures_in_a_row": 1,
            "restart_in_seconds": 0.001,
            "exc_info": failure,
        }
    ]
    assert failure.__traceback__ is not None


async def test_a_role_that_returns_unasked_has_failed() -> None:
    runs = 0

    async def run(handle: RoleHandle) -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            await work_until_stopped(handle)

    async with supervised(role("hasty", run)) as world:
        await world.until_state("hasty", State.RUNNING)
        assert world.status("hasty") == RoleStatus(
            State.RUNNING, 1, "ReturnedUnasked: role hasty returned without being asked to"
        )


async def test_a_failure_within_a_role_s_own_task_group_restarts_it() -> None:
    runs = 0

    async def fail() -> None:
        raise ValueError("within")

    async def run(handle: RoleHandle) -> None:
        nonlocal runs
        runs += 1
        async with anyio.create_task_group() as group:
            if runs == 1:
                group.start_soon(fail)
            await work_until_stopped(handle)

    async with supervised(role("grouped", run)) as world:
        await world.until(lambda: runs == 2)
        await world.until_state("grouped", State.RUNNING)
        assert world.status("grouped").last_error == "ValueError: within"


async def test_a_failure_of_nested_groups_is_told_by_its_causes() -> None:
    inner = ExceptionGroup("inner", [ValueError("one"), KeyError("two"), ValueError("one")])
    failure = ExceptionGroup("outer", [inner, OSError("three")])
    async with supervised(role("grouped", failing_times(1, failure))) as world:
        await world.until(lambda: world.status("grouped").restarts == 1)
        await world.until_state("grouped", State.RUNNING)
        told = "ValueError: one; KeyError: 'two'; OSError: three"
        assert world.status("grouped").last_error == told
        assert world.check("grouped").detail == f"restarted 1 times, last error {told}"


async def test_a_cancellation_that_escapes_from_a_library_does_not_end_a_role_silently() -> None:
    stray = failing_times(1, asyncio.CancelledError("a connection's own"))
    async with supervised(role("client", stray)) as world:
        await world.until(lambda: world.status("client").restarts == 1)
        await world.until_state("client", State.RUNNING)
        assert world.status("client").last_error == "CancelledError: a connection's own"


async def test_the_waits_between_restarts_double_up_to_the_longest(
    logged: list[EventDict],
) -> None:
    async with supervised(role("flaky", failing_times(5, ValueError()))) as world:
        await world.until(lambda: world.status("flaky").restarts == 5)
    assert restart_waits(logged) == [0.001, 0.002, 0.004, 0.004, 0.004]


@pytest.mark.parametrize(
    ("ran_seconds", "wait_after"), [(59.9, 0.004), (60.0, 0.001)], ids=["too short", "long enough"]
)
async def test_a_long_enough_run_begins_the_waits_again(
    logged: list[EventDict], ran_seconds: float, wait_after: float
) -> None:
    clock = ManualClock()
    runs = 0

    async def run(handle: RoleHandle) -> None:
        nonlocal runs
        runs += 1
        if runs > 3:
            await work_until_stopped(handle)
            return
        # What passes before a role has started is not time it ran well.
        clock.advance(100.0)
        handle.started()
        clock.advance(ran_seconds if runs == 3 else 1.0)
        raise ValueError

    async with supervised(role("flaky", run), clock=clock) as world:
        await world.until(lambda: runs == 4)
    assert restart_waits(logged) == [0.001, 0.002, wait_after]


async def test_a_role_shows_as_failing_after_five_failures_in_a_row() -> None:
    seen: list[tuple[bool, str]] = []

    async def run(handle: RoleHandle) -> None:
        check = world.check("flaky")
        seen.append((check.ok, check.detail))
        if len(seen) > 6:
            await work_until_stopped(handle)
            return
        handle.started()
        raise ValueError(f"failure {len(seen)}")

    async with supervised(role("flaky", run)) as world:
        await world.until_state("flaky", State.RUNNING)
        await world.until(lambda: len(seen) == 7)
        assert world.status("flaky").restarts == 6
    assert seen == [
        (False, "starting"),
        (False, "restarting, last error ValueError: failure 1"),
        (False, "restarting, last error ValueError: failure 2"),
        (False, "restarting, last error ValueError: failure 3"),
        (False, "restarting, last error ValueError: failure 4"),
        (False, "failing: 5 restarts, last error ValueError: failure 5"),
        (False, "failing: 6 restarts, last error ValueError: failure 6"),
    ]


async def test_a_handle_of_an_earlier_run_says_nothing_of_the_next() -> None:
    handles: list[RoleHandle] = []

    async def run(handle: RoleHandle) -> None:
        handles.append(handle)
        if len(handles) == 1:
            raise ValueError
        await handle.stopping.wait()

    async with supervised(role("flaky", run)) as world:
        await world.until(lambda: len(handles) == 2)
        handles[0].started()
        assert world.status("flaky").state is State.STARTING
        assert world.check("flaky").ok is False
        handles[1].started()
        assert world.status("flaky").state is State.RUNNING


async def test_a_role_that_backs_off_stops_at_once() -> None:
    broken = role("broken", failing_times(1, ValueError("no database")))
    async with supervised(broken, restarts=NEVER_AGAIN) as world:
        await world.until_state("broken", State.BACKING_OFF)
        assert world.check("broken").ok is False
        assert world.check("broken").detail == "restarting, last error ValueError: no database"
        assert await world.shut_down() == ShutdownReport(0.0, ())
        assert world.status("broken") == RoleStatus(State.STOPPED, 0, "ValueError: no database")


def test_two_roles_of_one_name_are_refused() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match=r"twice here: clicks$"):
        Supervisor(
            [role("clicks"), role("redirect"), role("clicks")],
            health=HealthBoard(clock),
            clock=clock,
            randomness=Longest(),
            deadline_seconds=1.0,
        )
