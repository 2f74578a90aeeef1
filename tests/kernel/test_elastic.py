from collections.abc import Callable, Sequence

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from couponflow.config import ConsumersSettings
from couponflow.kernel.elastic import ElasticConsumers
from tests.samples import PATIENCE_SECONDS, until

SAMPLE_SECONDS = 0.001
MUCH, BETWEEN, LITTLE = 1001, 500, 99


class Away(Exception):
    """What carries the messages does not answer."""


class Consumers:
    """Consumers that do nothing, and what became of each."""

    def __init__(self, *, linger: bool = False, **changes: int) -> None:
        self.depths: list[int | Exception] = [BETWEEN]
        """What is said at the next samples; the last is said for ever."""
        self.samples = 0
        self.at_sample: Callable[[], None] = lambda: None
        self.linger = linger
        self.running: dict[str, anyio.Event] = {}
        self.most = 0
        self.left: list[str] = []
        self.finished = anyio.Event()
        self.stopping = anyio.Event()
        self.failure: Exception | None = None
        self.elastic = ElasticConsumers(
            "w1-emails",
            ConsumersSettings(**changes),
            self.waiting,
            away=(Away,),
            sample_seconds=SAMPLE_SECONDS,
        )

    async def waiting(self) -> int:
        # Whoever was told to leave has done so by now, unless it lingers.
        await anyio.wait_all_tasks_blocked()
        self.samples += 1
        self.at_sample()
        depth = self.depths.pop(0) if len(self.depths) > 1 else self.depths[0]
        if isinstance(depth, Exception):
            raise depth
        return depth

    async def consume(self, name: str, leave: anyio.Event) -> None:
        assert name not in self.running
        self.running[name] = leave
        self.most = max(self.most, len(self.running))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._leave, leave, tasks.cancel_scope)
                await self.finished.wait()
                tasks.cancel_scope.cancel()
        finally:
            del self.running[name]
            self.left.append(name)
        if self.failure:
            raise self.failure

    async def _leave(self, leave: anyio.Event, scope: anyio.CancelScope) -> None:
        await leave.wait()
        if not self.linger:
            scope.cancel()

    async def run(self) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            await self.elastic.run(self.consume, self.stopping)

    async def sampled(self, count: int) -> None:
        """Return after so many more samples have been taken, and acted on."""
        enough = self.samples + count + 1
        await until(lambda: self.samples >= enough)

    def names(self) -> list[str]:
        return sorted(self.running)


def named(*numbers: int) -> list[str]:
    return [f"w1-emails-{number}" for number in numbers]


# Growing and shrinking


async def test_it_begins_with_the_least() -> None:
    consumers = Consumers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await consumers.sampled(3)
        assert consumers.names() == named(1, 2)
        assert consumers.elastic.size == 2
        consumers.finished.set()
    assert consumers.elastic.size == 0


async def test_it_grows_one_by_one_to_the_most_while_much_waits() -> None:
    consumers = Consumers()
    consumers.depths = [MUCH]
    sizes: list[int] = []
    consumers.at_sample = lambda: sizes.append(consumers.elastic.size)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await consumers.sampled(6)
        assert consumers.names() == named(1, 2, 3, 4, 5)
        consumers.finished.set()
    assert sizes[:6] == [2, 3, 4, 5, 5, 5]


async def test_it_shrinks_one_by_one_to_the_least_while_little_waits() -> None:
    consumers = Consumers()
    consumers.depths = [MUCH]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await until(lambda: consumers.elastic.size == 5)
        consumers.depths = [LITTLE]
        await consumers.sampled(5)
        assert consumers.names() == named(1, 2)
        assert consumers.left == named(5, 4, 3)
        consumers.finished.set()


@pytest.mark.parametrize("depth", [100, 1000])
async def test_between_the_limits_it_stays(depth: int) -> None:
    consumers = Consumers()
    consumers.depths = [MUCH, MUCH, depth]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await consumers.sampled(6)
        assert consumers.names() == named(1, 2, 3, 4)
        consumers.finished.set()


async def test_with_a_least_and_a_most_that_are_equal_it_never_changes() -> None:
    consumers = Consumers(min=3, max=3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        for depth in (MUCH, LITTLE):
            consumers.depths = [depth]
            await consumers.sampled(3)
            assert consumers.names() == named(1, 2, 3)
        consumers.finished.set()


async def test_a_name_is_used_again_only_when_its_consumer_has_left() -> None:
    consumers = Consumers(linger=True, max=4)
    consumers.depths = [MUCH]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await until(lambda: consumers.elastic.size == 4)
        consumers.depths = [LITTLE]
        await until(lambda: consumers.elastic.size == 2)
        consumers.depths = [MUCH]
        await consumers.sampled(3)
        # Both still finish what they have: there is room for nobody else.
        assert (consumers.elastic.size, consumers.names()) == (2, named(1, 2, 3, 4))
        consumers.finished.set()
    assert consumers.most == 4


# What carries the messages is away


async def test_while_the_depth_is_unknown_the_number_stays() -> None:
    consumers = Consumers()
    consumers.depths = [MUCH, MUCH, Away("no answer")]
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumers.run)
            await consumers.sampled(6)
            assert consumers.names() == named(1, 2, 3, 4)
            consumers.depths = [MUCH]
            await until(lambda: consumers.elastic.size == 5)
            consumers.finished.set()
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warnings == [
        {
            "event": "depth unknown",
            "log_level": "warning",
            "consumers": "w1-emails",
            "error": "no answer",
        }
    ]


async def test_a_fault_in_asking_for_the_depth_is_raised() -> None:
    consumers = Consumers()
    consumers.depths = [LookupError("a fault")]

    with pytest.raises(ExceptionGroup) as raised:
        await consumers.run()

    assert raised.group_contains(LookupError, match="a fault")
    assert (consumers.names(), consumers.elastic.size) == ([], 0)


# The end


async def test_once_stopping_it_neither_grows_nor_shrinks_and_waits_for_all() -> None:
    consumers = Consumers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await consumers.sampled(1)
        consumers.stopping.set()
        await anyio.wait_all_tasks_blocked()
        consumers.depths = [MUCH]
        samples = consumers.samples
        await anyio.wait_all_tasks_blocked()
        assert consumers.names() == named(1, 2)
        assert not any(leave.is_set() for leave in consumers.running.values())
        consumers.finished.set()
    assert consumers.samples == samples
    assert consumers.left == named(1, 2)


async def test_a_depth_that_comes_back_after_the_end_changes_nothing() -> None:
    consumers = Consumers()
    consumers.depths = [MUCH]
    consumers.at_sample = consumers.stopping.set
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumers.run)
        await until(lambda: consumers.samples == 1)
        await anyio.wait_all_tasks_blocked()
        running = consumers.names()
        await anyio.wait_all_tasks_blocked()
        assert consumers.names() == running
        consumers.finished.set()
    assert consumers.samples == 1


async def test_it_returns_when_the_channel_is_finished() -> None:
    consumers = Consumers()
    consumers.depths = [MUCH]
    consumers.finished.set()
    await consumers.run()

    assert consumers.left == named(1, 2)
    assert consumers.samples == 0


async def test_a_consumer_that_fails_ends_all_and_is_heard() -> None:
    consumers = Consumers()
    consumers.failure = RuntimeError("the handler is broken")
    consumers.finished.set()

    with pytest.raises(ExceptionGroup) as raised:
        await consumers.run()

    assert raised.group_contains(RuntimeError, match="the handler is broken", depth=1)
    assert (consumers.names(), consumers.elastic.size) == ([], 0)


async def test_it_can_be_cancelled_and_run_again() -> None:
    consumers = Consumers()
    with anyio.move_on_after(PATIENCE_SECONDS) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumers.run)
            await consumers.sampled(1)
            scope.cancel()
    assert (consumers.names(), consumers.elastic.size) == ([], 0)

    consumers.finished.set()
    await consumers.run()
    assert sorted(consumers.left[:2]) == consumers.left[2:] == named(1, 2)


# Whatever happens


def model(depths: Sequence[int | None], least: int, most: int) -> list[int]:
    """The size at each sample."""
    sizes = [least]
    for depth in depths:
        step = 0 if depth is None else (depth > 1000) - (depth < 100)
        sizes.append(min(most, max(least, sizes[-1] + step)))
    return sizes


bounds = st.tuples(st.integers(1, 4), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))
depths = st.lists(
    st.one_of(st.none(), st.sampled_from([0, 99, 100, 1000, 1001, 10**9])), max_size=25
)


@given(bounds=bounds, depths=depths, linger=st.booleans())
@settings(max_examples=50, deadline=None)
async def test_the_size_follows_the_depth_within_its_bounds(
    bounds: tuple[int, int], depths: list[int | None], linger: bool
) -> None:
    least, most = bounds
    consumers = Consumers(linger=linger, min=least, max=most)
    sizes: list[int] = []

    def sample() -> None:
        sizes.append(consumers.elastic.size)
        if len(sizes) > len(depths):
            consumers.finished.set()
            return
        depth = depths[len(sizes) - 1]
        consumers.depths = [Away() if depth is None else depth]

    consumers.at_sample = sample
    await consumers.run()

    assert len(sizes) == len(depths) + 1
    assert all(least <= size <= most for size in sizes)
    assert consumers.most <= most
    if not linger:
        assert sizes == model(depths, least, most)
