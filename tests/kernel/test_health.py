import msgspec
import pytest

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.health import Check, HealthBoard

START = 1_790_000_000.0


@pytest.fixture
def board(manual_clock: ManualClock) -> HealthBoard:
    return HealthBoard(manual_clock)


def test_a_board_without_checks_is_ready(board: HealthBoard) -> None:
    health = board.snapshot()
    assert health.status == "ready"
    assert health.checks == {}


def test_everything_well_is_ready(board: HealthBoard) -> None:
    board.report("role:redirect", True)
    board.report("database", True, "3 connections")
    health = board.snapshot({"role:redirect"})
    assert health.status == "ready"
    assert health.checks == {
        "database": Check(True, "3 connections", START),
        "role:redirect": Check(True, "", START),
    }


def test_a_failing_required_check_is_not_ready(board: HealthBoard) -> None:
    board.report("database", False, "connection refused")
    assert board.snapshot({"database"}).status == "not_ready"


def test_another_failing_check_is_degraded(board: HealthBoard) -> None:
    board.report("role:redirect", True)
    board.report("database", False, "connection refused")
    health = board.snapshot({"role:redirect"})
    assert health.status == "degraded"
    assert health.checks["database"] == Check(False, "connection refused", START)


def test_a_name_with_a_colon_at_its_end_requires_the_whole_group(board: HealthBoard) -> None:
    board.report("role:redirect", True)
    board.report("role:clicks", False)
    board.report("roles", True)
    assert board.snapshot({"role:"}).status == "not_ready"
    assert board.snapshot({"role:redirect"}).status == "degraded"
    # Without the colon it is a name, not a beginning.
    board.report("role", True)
    assert board.snapshot({"role"}).status == "degraded"


def test_a_required_check_that_nobody_has_reported_is_not_ready(
    board: HealthBoard, manual_clock: ManualClock
) -> None:
    manual_clock.advance(60.0)
    health = board.snapshot({"role:redirect"})
    assert health.status == "not_ready"
    assert health.checks == {"role:redirect": Check(False, "nothing reported yet", START)}
    assert board.snapshot().checks == {}


def test_since_tells_when_the_state_last_changed(
    board: HealthBoard, manual_clock: ManualClock
) -> None:
    board.report("database", True)
    manual_clock.advance(10.0)
    board.report("database", True, "still there")
    assert board.snapshot().checks["database"] == Check(True, "still there", START)
    manual_clock.advance(10.0)
    board.report("database", False, "gone")
    manual_clock.advance(10.0)
    board.report("database", False, "still gone")
    assert board.snapshot().checks["database"] == Check(False, "still gone", START + 20.0)


def test_a_removed_check_no_longer_counts(board: HealthBoard) -> None:
    board.report("database", False)
    board.add_probe("disk", lambda: (False, "full"))
    assert board.snapshot().status == "degraded"
    board.remove("database")
    board.remove("disk")
    board.remove("never heard of")
    assert board.snapshot().status == "ready"
    assert board.snapshot().checks == {}


def test_a_probe_is_asked_at_every_snapshot(board: HealthBoard, manual_clock: ManualClock) -> None:
    depths = iter([10, 20_000, 30_000])

    def queue_depth() -> tuple[bool, str]:
        depth = next(depths)
        return depth < 15_000, f"{depth} wait"

    board.add_probe("queue:clicks", queue_depth)
    assert board.snapshot({"queue:clicks"}).status == "ready"
    manual_clock.advance(5.0)
    health = board.snapshot({"queue:clicks"})
    assert health.status == "not_ready"
    assert health.checks == {"queue:clicks": Check(False, "20000 wait", START + 5.0)}
    manual_clock.advance(5.0)
    assert board.snapshot().checks == {"queue:clicks": Check(False, "30000 wait", START + 5.0)}


def test_a_broken_probe_fails_alone(board: HealthBoard) -> None:
    def broken() -> tuple[bool, str]:
        raise OSError("no such disk")

    board.add_probe("disk", broken)
    board.report("database", True)
    health = board.snapshot({"database"})
    assert health.status == "degraded"
    assert health.checks["disk"] == Check(False, "its probe failed: OSError: no such disk", START)
    assert health.checks["database"].ok


def test_a_snapshot_does_not_change_with_later_reports(board: HealthBoard) -> None:
    board.report("database", True)
    before = board.snapshot()
    board.report("database", False)
    board.report("disk", False)
    assert before.checks == {"database": Check(True, "", START)}


def test_a_snapshot_is_written_as_json(board: HealthBoard) -> None:
    board.report("database", False, "gone")
    assert msgspec.json.encode(board.snapshot()) == (
        b'{"status":"degraded","checks":'
        b'{"database":{"ok":false,"detail":"gone","since":1790000000.0}}}'
    )
