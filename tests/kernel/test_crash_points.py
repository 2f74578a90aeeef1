import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from couponflow.kernel.crash_points import CRASH_POINTS, CrashPointUnknown, arm, crash_point

DRIVER = """
import sys
from couponflow.kernel.crash_points import arm, crash_point
arm(sys.argv[1])
for visit in range(1, 6):
    crash_point("outbox.claimed")
    crash_point("outbox.streamed")
    print(visit, flush=True)
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def drive(point: str) -> tuple[int, list[str]]:
    """How a process ends that comes by two points five times, and what it said before."""
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, point], capture_output=True, text=True, timeout=30
    )
    return ended.returncode, ended.stdout.split()


def test_points_do_nothing_unless_one_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    for name in CRASH_POINTS:
        crash_point(name)
    arm("outbox.claimed:2")
    crash_point("outbox.streamed")
    crash_point("outbox.claimed")
    assert killed == []
    crash_point("outbox.claimed")
    assert killed == [signal.SIGKILL]
    # Whoever survived that does not die a second time.
    crash_point("outbox.claimed")
    assert killed == [signal.SIGKILL]


def test_an_empty_text_disarms(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    arm("outbox.claimed")
    arm("")
    crash_point("outbox.claimed")
    assert killed == []


@pytest.mark.parametrize(
    "text",
    ["outbox.claim", "outbox.claimed:0", "outbox.claimed:x", "outbox.claimed:-1", "nothing:1"],
)
def test_a_point_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(CrashPointUnknown, match=r"is not one of channel\.acknowledged, "):
        arm(text)


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("outbox.claimed", []),
        ("outbox.streamed:1", []),
        ("outbox.claimed:3", ["1", "2"]),
        ("outbox.streamed:5", ["1", "2", "3", "4"]),
    ],
)
def test_a_process_dies_at_the_visit_that_was_named(point: str, said: list[str]) -> None:
    assert drive(point) == (-signal.SIGKILL, said)


def test_a_process_lives_that_does_not_come_by_so_often() -> None:
    assert drive("outbox.claimed:6") == (0, ["1", "2", "3", "4", "5"])
