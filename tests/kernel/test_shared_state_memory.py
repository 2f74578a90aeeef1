from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.shared_state import Heartbeat, Lock, RateVerdict, WindowCount
from couponflow.kernel.shared_state_memory import MAX_UNHEARD, MemorySharedState
from tests.kernel.shared_state_conformance import (
    LONG_SECONDS,
    SharedStateConformance,
    StateFactory,
)

T = TypeVar("T")


class MemoryInstallation:
    """One process; two daemons in it are the same."""

    brief_seconds = 1.0

    def __init__(self, max_keys: int = 1_000) -> None:
        self.clock = ManualClock()
        self.state = MemorySharedState(self.clock, max_keys=max_keys)
        self.other = self.state

    async def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)


class TestMemorySharedState(SharedStateConformance):
    @pytest.fixture
    def make_state(self) -> StateFactory:
        @asynccontextmanager
        async def make() -> AsyncGenerator[MemoryInstallation, None]:
            yield MemoryInstallation()

        return make


async def test_beyond_its_bound_it_forgets_what_was_written_longest_ago() -> None:
    state = MemoryInstallation(max_keys=3).state
    for number in range(5):
        await state.count(str(number), lifetime_seconds=LONG_SECONDS)
        await state.cache_put(str(number), b"x", lifetime_seconds=LONG_SECONDS)
        await state.rate_limit(str(number), 1, LONG_SECONDS, when_away="refuse")
        await state.first_time(str(number), lifetime_seconds=LONG_SECONDS)
        await state.beat(str(number), {}, lifetime_seconds=LONG_SECONDS)
    assert [await state.counted(str(number)) for number in range(5)] == [0, 0, 1, 1, 1]
    assert [await state.cache_get(str(number)) for number in (1, 2)] == [None, b"x"]
    refused = [
        not (await state.rate_limit(str(number), 1, LONG_SECONDS, when_away="refuse")).allowed
        for number in (4, 3, 2)
    ]
    assert refused == [True, True, True]
    assert not await state.first_time("2", lifetime_seconds=LONG_SECONDS)
    assert await state.first_time("1", lifetime_seconds=LONG_SECONDS)
    assert [each.worker_id for each in await state.heartbeats()] == ["2", "3", "4"]


async def test_what_has_ended_makes_room_before_anything_living_is_forgotten() -> None:
    installation = MemoryInstallation(max_keys=3)
    state = installation.state
    await state.cache_put("living", b"x", lifetime_seconds=LONG_SECONDS)
    for number in range(2):
        await state.cache_put(str(number), b"x", lifetime_seconds=1.0)
    installation.clock.advance(1.0)
    for number in range(2, 4):
        await state.cache_put(str(number), b"x", lifetime_seconds=LONG_SECONDS)
    found = [await state.cache_get(key) for key in ("living", "2", "3")]
    assert found == [b"x", b"x", b"x"]


async def test_memory_is_given_back_when_lifetimes_end() -> None:
    installation = MemoryInstallation(max_keys=100_000)
    for number in range(20_000):
        await installation.state.first_time(str(number), lifetime_seconds=1.0)
        installation.clock.advance(0.001)
    # A thousand live at any moment; the first sweep comes after 1,024.
    assert installation.state.remembered() < 3_000


async def test_held_locks_are_never_forgotten_for_another() -> None:
    installation = MemoryInstallation(max_keys=2)
    state = installation.state
    held = [await state.acquire(name, "a", lease_seconds=1.0) for name in "xy"]
    assert await state.acquire("z", "b", lease_seconds=1.0) is None
    assert [lock is not None and await state.release(lock) for lock in held[:1]] == [True]
    assert await state.acquire("z", "b", lease_seconds=1.0) is not None
    installation.clock.advance(1.0)
    assert await state.acquire("x", "b", lease_seconds=1.0) is not None


async def test_fences_grow_past_those_of_the_process_before() -> None:
    before = MemoryInstallation()
    locks = [await before.state.acquire(str(n), "a", lease_seconds=1.0) for n in range(100)]
    after = MemorySharedState(ManualClock(before.clock.now() + 1.0))
    lock = await after.acquire("0", "a", lease_seconds=1.0)
    assert lock is not None
    assert all(older is not None and older.fence < lock.fence for older in locks)


async def test_a_clock_that_is_set_back_does_not_set_fences_back() -> None:
    clock = ManualClock()
    state = MemorySharedState(clock)
    first = await state.acquire("x", "a", lease_seconds=1.0)
    clock.advance(-3_600.0)
    assert first is not None
    assert await state.release(first)
    second = await state.acquire("x", "a", lease_seconds=1.0)
    assert second is not None
    assert second.fence == first.fence + 1


async def test_a_listener_that_does_not_listen_loses_the_oldest() -> None:
    state = MemoryInstallation().state
    async with state.listen("offers") as listener:
        for number in range(MAX_UNHEARD + 2):
            await state.publish("offers", str(number).encode())
        assert await listener.receive(1.0) == b"2"


async def test_what_a_caller_changes_later_is_not_changed_here() -> None:
    state = MemoryInstallation().state
    details = {"roles": "all"}
    await state.beat("a", details, lifetime_seconds=LONG_SECONDS)
    details["roles"] = "none"
    assert await state.heartbeats() == [Heartbeat("a", {"roles": "all"})]


def at_once(call: Coroutine[object, object, T]) -> T:
    """The result of a call that never waits."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the call waited")


class SharedStateMachine(RuleBasedStateMachine):
    """One rate limit and one lock against the plainest model of each."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.state = MemorySharedState(self.clock)
        self.now = 0
        self.counted, self.window_ends_at = 0, 0
        self.lock: Lock | None = None
        self.lease_ends_at = 0
        self.locks: list[Lock] = []

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.now += seconds

    @rule(limit=st.integers(0, 5), window=st.integers(1, 30))
    def one_more(self, limit: int, window: int) -> None:
        living = self.now < self.window_ends_at
        known = self.counted if living else 0
        verdict = at_once(self.state.rate_limit("k", limit, window, when_away="refuse"))
        if known < limit:
            assert verdict == RateVerdict(allowed=True)
            self.count(1, window)
        else:
            wait = self.window_ends_at - self.now if living else window
            assert verdict == RateVerdict(allowed=False, retry_after_seconds=wait)

    @rule(amount=st.integers(1, 5), window=st.integers(1, 30))
    def others_allowed(self, amount: int, window: int) -> None:
        told = at_once(self.state.rate_limit_add("k", amount, window_seconds=window))
        self.count(amount, window)
        assert told == WindowCount(self.counted, self.window_ends_at - self.now)

    def count(self, amount: int, window: int) -> None:
        if self.now >= self.window_ends_at:
            self.counted, self.window_ends_at = 0, self.now + window
        self.counted += amount

    @rule(holder=st.sampled_from("ab"), lease=st.integers(1, 30))
    def somebody_wants_the_lock(self, holder: str, lease: int) -> None:
        lock = at_once(self.state.acquire("l", holder, lease_seconds=lease))
        assert (lock is None) == self.held()
        if lock is not None:
            assert all(older.fence < lock.fence for older in self.locks)
            self.lock, self.lease_ends_at = lock, self.now + lease
            self.locks.append(lock)

    @rule(which=st.integers(0, 3), lease=st.integers(1, 30))
    def a_recent_holder_renews(self, which: int, lease: int) -> None:
        for lock in self.locks[::-1][which : which + 1]:
            mine = self.held() and lock == self.lock
            assert at_once(self.state.renew(lock, lease_seconds=lease)) == mine
            if mine:
                self.lease_ends_at = self.now + lease

    @rule(which=st.integers(0, 3))
    def a_recent_holder_lets_go(self, which: int) -> None:
        for lock in self.locks[::-1][which : which + 1]:
            mine = self.held() and lock == self.lock
            assert at_once(self.state.release(lock)) == mine
            if mine:
                self.lock = None

    def held(self) -> bool:
        return self.lock is not None and self.now < self.lease_ends_at


SharedStateMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestSharedStateAgainstAModel = SharedStateMachine.TestCase
