import math
from dataclasses import dataclass

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.pace import BURST_SECONDS, UNLIMITED, Pace
from tests.samples import PATIENCE_SECONDS, until


class WatchedClock(ManualClock):
    """Counts how often it is looked at."""

    looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return super().monotonic()


@pytest.fixture
def clock() -> WatchedClock:
    return WatchedClock()


async def passes(pace: Pace, count: int = 1) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        await pace.take(count)


async def waits(pace: Pace, clock: WatchedClock, count: int = 1) -> bool:
    """Whether it still waits after it has looked at a clock that stands still, several times."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_after_looks, scope, clock)
            await pace.take(count)
            tasks.cancel_scope.cancel()
    return scope.cancelled_caught


async def _cancel_after_looks(scope: anyio.CancelScope, clock: WatchedClock) -> None:
    looks = clock.looks
    await until(lambda: clock.looks > looks + 3)
    scope.cancel()


# The limit


async def test_without_a_rate_everything_passes(clock: WatchedClock) -> None:
    pace = Pace(clock)

    await passes(pace, 1_000_000)
    assert pace.rate_per_second is None


async def test_a_tenth_of_a_second_may_begin_at_once(clock: WatchedClock) -> None:
    pace = Pace(clock, 1000)

    await passes(pace, 60)
    await passes(pace, 40)
    assert await waits(pace, clock)


async def test_at_a_low_rate_one_may_begin_at_once(clock: WatchedClock) -> None:
    pace = Pace(clock, 5)

    await passes(pace)
    clock.advance(0.2)
    await passes(pace)
    assert pace.rate_per_second == 5


@pytest.mark.parametrize(
    ("rate", "at_once"), [(None, UNLIMITED), (1000, 100), (25, 2), (5, 1), (0.001, 1)]
)
async def test_the_largest_batch_is_what_may_begin_at_once(
    clock: WatchedClock, rate: float | None, at_once: int
) -> None:
    pace = Pace(clock)
    pace.rate_per_second = rate

    assert pace.at_once == at_once


async def test_each_waits_for_what_the_rate_earns(clock: WatchedClock) -> None:
    pace = Pace(clock, 1000)
    await passes(pace, 100)
    clock.advance(0.002)

    await passes(pace, 2)
    assert await waits(pace, clock)


@pytest.mark.parametrize("count", [100, 200])
async def test_a_pause_earns_no_more_than_the_bucket_holds(clock: WatchedClock, count: int) -> None:
    pace = Pace(clock, 1000)
    clock.advance(3600)

    assert await waits(pace, clock, 101)
    await passes(pace, 100)
    assert await waits(pace, clock, count)


async def test_a_batch_larger_than_the_bucket_waits_until_it_is_earned(clock: WatchedClock) -> None:
    pace = Pace(clock, 10_000)
    assert await waits(pace, clock, 1020)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passes, pace, 1020)
        await anyio.wait_all_tasks_blocked()
        clock.advance(0.002)
    assert await waits(pace, clock)


async def test_a_cancelled_call_has_taken_nothing(clock: WatchedClock) -> None:
    pace = Pace(clock, 1000)
    assert await waits(pace, clock, 101)

    await passes(pace, 100)


@dataclass
class Queue:
    """Notes who passes, in order."""

    pace: Pace
    passed: list[str]

    async def take(self, name: str, count: int) -> None:
        await passes(self.pace, count)
        self.passed.append(name)


async def test_a_large_batch_is_not_overtaken(clock: WatchedClock) -> None:
    queue = Queue(Pace(clock, 1000), [])
    async with anyio.create_task_group() as tasks:
        for name, count in (("large", 103), ("small", 1), ("smallest", 1)):
            tasks.start_soon(queue.take, name, count)
            await anyio.wait_all_tasks_blocked()
        assert queue.passed == []
        clock.advance(0.003)
        await until(lambda: queue.passed == ["large"])
        clock.advance(0.002)
    assert queue.passed == ["large", "small", "smallest"]


# Changing it


@pytest.mark.parametrize("rate", [None, 1_000_000.0])
async def test_whoever_waits_hears_of_a_new_rate(clock: WatchedClock, rate: float | None) -> None:
    pace = Pace(clock, 0.001)
    await passes(pace)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(passes, pace, 2)
        tasks.start_soon(passes, pace)
        await anyio.wait_all_tasks_blocked()
        pace.rate_per_second = rate
        clock.advance(0.00001)
    assert pace.rate_per_second == rate


async def test_what_was_earned_before_was_earned_at_the_old_rate(clock: WatchedClock) -> None:
    pace = Pace(clock, 1000)
    await passes(pace, 100)
    clock.advance(0.002)
    pace.rate_per_second = 10_000

    await passes(pace, 2)
    assert await waits(pace, clock)


async def test_a_lower_rate_has_a_smaller_bucket(clock: WatchedClock) -> None:
    pace = Pace(clock, 100_000)
    pace.rate_per_second = 1000

    await passes(pace, 100)
    assert await waits(pace, clock)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(clock: WatchedClock, rate: float) -> None:
    pace = Pace(clock, 7)

    for attempt in (lambda: Pace(clock, rate), lambda: setattr(pace, "rate_per_second", rate)):
        with pytest.raises(ValueError, match="must be a number above 0 or None"):
            attempt()
    assert pace.rate_per_second == 7


# Whatever happens


async def passes_now(pace: Pace, count: int) -> bool:
    """Whether it passes before any time goes by."""
    passed = False

    async def take() -> None:
        nonlocal passed
        await pace.take(count)
        passed = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return passed


@given(
    rate=st.floats(20.0, 100_000.0),
    steps=st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(1, 200)), max_size=30),
)
async def test_no_more_pass_than_were_earned(rate: float, steps: list[tuple[float, int]]) -> None:
    clock = WatchedClock()
    pace = Pace(clock, rate)
    tokens = bucket = max(1.0, rate * BURST_SECONDS)
    for seconds, count in steps:
        clock.advance(seconds)
        tokens = min(bucket, tokens + seconds * rate)
        if await passes_now(pace, count):
            tokens -= count
            assert tokens >= -1e-6
        else:
            assert tokens < count


async def test_in_real_time_the_rate_is_kept() -> None:
    clock = SystemClock()
    pace = Pace(clock, 2000)
    begun = clock.monotonic()
    for _ in range(300):
        await pace.take()

    assert clock.monotonic() - begun >= (300 - 200) / 2000 - 0.001
