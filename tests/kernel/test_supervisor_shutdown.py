"""How the roles stop: in order, in time, whatever one of them does."""

import anyio
import pytest
from structlog.typing import EventDict

import couponflow.kernel.supervisor
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.role import RoleHandle, Stage
from couponflow.kernel.supervisor import RoleStatus, ShutdownReport, State
from tests.kernel.supervision import (
    Run,
    capture_log,
    never_end,
    role,
    supervised,
    work_until_stopped,
)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[EventDict]:
    return capture_log(monkeypatch)


async def test_the_intake_stops_before_the_work() -> None:
    events: list[str] = []

    def recorded(name: str) -> Run:
        async def run(handle: RoleHandle) -> None:
            await work_until_stopped(handle)
            events.append(f"{name} is asked to stop")
            await anyio.lowlevel.checkpoint()
            events.append(f"{name} has stopped")

        return run

    async def between(stage: Stage) -> None:
        events.append(f"after {stage.name}")
        await anyio.lowlevel.checkpoint()

    roles = (
        role("clicks", recorded("clicks")),
        role("redirect", recorded("redirect"), Stage.INTAKE),
    )
    async with supervised(*roles, between_stages=between) as world:
        await world.until_state("clicks", State.RUNNING)
        assert events == []
        assert await world.shut_down() == ShutdownReport(0.0, ())
    assert events == [
        "redirect is asked to stop",
        "redirect has stopped",
        "after INTAKE",
        "clicks is asked to stop",
        "clicks has stopped",
    ]


async def test_work_that_fails_while_the_intake_stops_is_restarted_to_finish() -> None:
    restarted = anyio.Event()
    stopping_seen: list[bool] = []

    async def intake(handle: RoleHandle) -> None:
        await work_until_stopped(handle)
        await restarted.wait()

    async def work(handle: RoleHandle) -> None:
        if world.status("work").restarts:
            stopping_seen.append(handle.stopping.is_set())
            restarted.set()
            await work_until_stopped(handle)
            return
        handle.started()
        await world.stop.wait()
        raise ValueError

    async with supervised(role("intake", intake, Stage.INTAKE), role("work", work)) as world:
        await world.until_state("work", State.RUNNING)
        assert await world.shut_down() == ShutdownReport(0.0, ())
        assert world.status("work").restarts == 1
    assert stopping_seen == [False]


async def test_a_role_that_fails_while_stopping_is_not_restarted(
    logged: list[EventDict],
) -> None:
    runs: list[str] = []

    async def run(handle: RoleHandle) -> None:
        runs.append("begun")
        await work_until_stopped(handle)
        raise ValueError("flush failed")

    async with supervised(role("clicks", run)) as world:
        await world.until_state("clicks", State.RUNNING)
        assert await world.shut_down() == ShutdownReport(0.0, ())
        assert world.status("clicks") == RoleStatus(State.STOPPED, 0, "ValueError: flush failed")
    assert runs == ["begun"]
    assert [entry["event"] for entry in logged] == ["role_failed_while_stopping"]


async def test_a_role_that_is_late_is_cut_off_and_named(logged: list[EventDict]) -> None:
    roles = (role("slow", never_end), role("quick"))
    async with supervised(*roles, deadline_seconds=0.05) as world:
        await world.until_state("slow", State.RUNNING)
        report = await world.shut_down()
        assert report.cut_off == ("slow",)
        assert world.status("slow") == RoleStatus(State.STOPPED, 0, "")
    assert logged == [
        {"event": "roles_cut_off", "log_level": "error", "stage": "work", "roles": ["slow"]}
    ]


async def test_a_late_intake_leaves_time_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert couponflow.kernel.supervisor.INTAKE_SHARE == 0.6
    monkeypatch.setattr(couponflow.kernel.supervisor, "INTAKE_SHARE", 0.01)
    asked_at: list[float] = []

    async def work(handle: RoleHandle) -> None:
        await work_until_stopped(handle)
        asked_at.append(anyio.current_time())

    roles = (role("intake", never_end, Stage.INTAKE), role("work", work))
    async with supervised(*roles, deadline_seconds=5.0) as world:
        await world.until_state("work", State.RUNNING)
        begun_at = anyio.current_time()
        assert (await world.shut_down()).cut_off == ("intake",)
    assert len(asked_at) == 1
    assert 0.04 <= asked_at[0] - begun_at < 5.0


async def test_a_role_that_ignores_its_cancellation_is_named_and_waited_for(
    logged: list[EventDict],
) -> None:
    release = anyio.Event()

    async def run(handle: RoleHandle) -> None:
        handle.started()
        with anyio.CancelScope(shield=True):
            await release.wait()

    async with supervised(role("deaf", run), deadline_seconds=0.05) as world:
        await world.until_state("deaf", State.RUNNING)
        world.stop.set()
        await world.until(lambda: len(logged) == 2)
        assert not world.ended.is_set()
        release.set()
        report = await world.shut_down()
        assert report.cut_off == ("deaf",)
    assert [(entry["event"], entry["roles"]) for entry in logged] == [
        ("roles_cut_off", ["deaf"]),
        ("roles_ignore_cancellation", ["deaf"]),
    ]


async def test_a_failure_between_the_stages_does_not_keep_the_work_from_stopping(
    logged: list[EventDict],
) -> None:
    async def between(stage: Stage) -> None:
        raise ValueError("cannot seal")

    async with supervised(role("clicks"), between_stages=between) as world:
        await world.until_state("clicks", State.RUNNING)
        assert await world.shut_down() == ShutdownReport(0.0, ())
    assert [entry["event"] for entry in logged] == ["between_stages_failed"]


async def test_a_hang_between_the_stages_ends_with_the_deadline(
    logged: list[EventDict],
) -> None:
    async def between(stage: Stage) -> None:
        await anyio.sleep_forever()

    async with supervised(
        role("clicks", never_end), between_stages=between, deadline_seconds=0.05
    ) as world:
        await world.until_state("clicks", State.RUNNING)
        assert (await world.shut_down()).cut_off == ("clicks",)
    assert [entry["event"] for entry in logged] == ["between_stages_cut_off", "roles_cut_off"]


async def test_the_report_tells_how_long_the_shutdown_took() -> None:
    clock = ManualClock()

    async def run(handle: RoleHandle) -> None:
        await work_until_stopped(handle)
        clock.advance(3.0)

    async with supervised(role("clicks", run), clock=clock) as world:
        await world.until_state("clicks", State.RUNNING)
        clock.advance(100.0)
        assert await world.shut_down() == ShutdownReport(3.0, ())


async def test_a_supervisor_without_roles_waits_to_be_stopped() -> None:
    async with supervised() as world:
        await anyio.wait_all_tasks_blocked()
        assert not world.ended.is_set()
        assert await world.shut_down() == ShutdownReport(0.0, ())


async def test_cancelling_the_supervisor_cancels_its_roles_without_calling_them_failed(
    logged: list[EventDict],
) -> None:
    async with supervised(role("clicks", never_end)) as world:
        await world.until_state("clicks", State.RUNNING)
        world.cancel()
    assert world.status("clicks") == RoleStatus(State.STOPPED, 0, "")
    assert world.report is None
    assert logged == []
