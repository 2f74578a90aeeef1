"""What every shared state promises, as tests that each implementation inherits.

A test file of an implementation has a class that inherits `SharedStateConformance` and a fixture
`make_state`. Nothing here knows how time passes: an installation is told to let it pass, and says
itself how long something short-lived lives in it.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio
import pytest

from couponflow.kernel.shared_state import Heartbeat, Lock, RateVerdict, SharedState
from tests.samples import PATIENCE_SECONDS

LONG_SECONDS = 600.0
"""Longer than any test."""
KEY = "ratelimit:test:192.0.2.1"


class Installation(Protocol):
    """Two daemons that share an empty state nobody else uses."""

    @property
    def state(self) -> SharedState: ...

    @property
    def other(self) -> SharedState:
        """The same state, as another daemon sees it; may be the same object."""
        ...

    @property
    def brief_seconds(self) -> float:
        """A lifetime that a test can wait for, longer than a call takes."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Return when so much time has passed for the state."""
        ...


class StateFactory(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[Installation]: ...


@asynccontextmanager
async def opened(make_state: StateFactory) -> AsyncGenerator[Installation, None]:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with make_state() as installation:
            yield installation


def unhurried(world: Installation) -> float:
    """A lifetime within which a second call surely comes, even on a busy machine."""
    return 3 * world.brief_seconds


async def take(state: SharedState, holder: str, lease_seconds: float = LONG_SECONDS) -> Lock:
    """The lock `sync`, which nobody else may hold."""
    lock = await state.acquire("sync", holder, lease_seconds=lease_seconds)
    assert lock is not None
    return lock


async def allowed(state: SharedState, times: int, limit: int, key: str = KEY) -> int:
    """How many of so many calls at once are allowed."""
    verdicts: list[bool] = []

    async def ask() -> None:
        verdict = await state.rate_limit(key, limit, LONG_SECONDS, when_away="refuse")
        verdicts.append(verdict.allowed)

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(ask)
    assert len(verdicts) == times
    return sum(verdicts)


class RateLimitConformance:
    """The promises of rate limits."""

    @pytest.fixture
    def make_state(self) -> StateFactory:
        raise NotImplementedError("the implementation's test class has this fixture")

    async def test_the_limit_is_exact_and_says_how_long_to_wait(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            for state in (world.state, world.other, world.state):
                verdict = await state.rate_limit(KEY, 3, LONG_SECONDS, when_away="refuse")
                assert verdict == RateVerdict(allowed=True)
            for state in (world.state, world.other):
                refused = await state.rate_limit(KEY, 3, LONG_SECONDS, when_away="allow")
                assert not refused.allowed
                assert 0 < refused.retry_after_seconds <= LONG_SECONDS

    async def test_of_a_hundred_at_once_exactly_the_limit_is_allowed(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            assert await allowed(world.state, 100, 37) == 37
            assert await allowed(world.other, 10, 37) == 0

    async def test_keys_are_counted_apart(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            assert await allowed(world.state, 3, 2, "ratelimit:a") == 2
            assert await allowed(world.state, 3, 2, "ratelimit:b") == 2

    async def test_a_limit_of_nothing_allows_nothing(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            verdict = await world.state.rate_limit(KEY, 0, 30.0, when_away="allow")
            assert verdict == RateVerdict(allowed=False, retry_after_seconds=30.0)

    async def test_a_window_begins_with_the_first_and_ends(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            window = unhurried(world)
            first = await world.state.rate_limit(KEY, 1, window, when_away="refuse")
            # A later one with a longer window does not move the end.
            await world.state.rate_limit(KEY, 1, LONG_SECONDS, when_away="refuse")
            await world.elapse(window)
            again = await world.state.rate_limit(KEY, 1, LONG_SECONDS, when_away="refuse")
            refused = await world.state.rate_limit(KEY, 1, LONG_SECONDS, when_away="refuse")
            assert (first.allowed, again.allowed, refused.allowed) == (True, True, False)

    async def test_what_was_refused_is_not_counted(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            assert await allowed(world.state, 9, 2) == 2
            counted = await world.state.rate_limit_add(KEY, 1, window_seconds=LONG_SECONDS)
            assert counted.count == 3

    async def test_what_others_allowed_counts_against_the_limit(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            first = await world.state.rate_limit_add(KEY, 4, window_seconds=LONG_SECONDS)
            second = await world.other.rate_limit_add(KEY, 3, window_seconds=2 * LONG_SECONDS)
            assert (first.count, second.count) == (4, 7)
            assert LONG_SECONDS - PATIENCE_SECONDS < second.seconds_left <= LONG_SECONDS
            assert await allowed(world.state, 5, 10) == 3

    async def test_an_added_window_ends(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            await world.state.rate_limit_add(KEY, 4, window_seconds=world.brief_seconds)
            await world.elapse(world.brief_seconds)
            again = await world.state.rate_limit_add(KEY, 1, window_seconds=LONG_SECONDS)
            assert again.count == 1


class CounterAndCacheConformance:
    """The promises of counters, caches and idempotency."""

    async def test_a_counter_adds_up_from_every_daemon(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            assert await world.state.counted("mails") == 0
            assert await world.state.count("mails", lifetime_seconds=LONG_SECONDS) == 1
            assert await world.other.count("mails", 5, lifetime_seconds=LONG_SECONDS) == 6
            assert await world.state.count("mails", -2, lifetime_seconds=LONG_SECONDS) == 4
            assert await world.other.counted("mails") == 4
            assert await world.state.counted("sms") == 0

    async def test_counts_at_once_all_arrive(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:

            async def count() -> None:
                await world.state.count("mails", 2, lifetime_seconds=LONG_SECONDS)

            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(count)
            assert await world.other.counted("mails") == 100

    async def test_a_counter_is_forgotten_so_long_after_its_first(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            lifetime = unhurried(world)
            await world.state.count("mails", lifetime_seconds=lifetime)
            await world.state.count("mails", lifetime_seconds=LONG_SECONDS)
            await world.elapse(lifetime)
            assert await world.state.counted("mails") == 0
            assert await world.state.count("mails", lifetime_seconds=LONG_SECONDS) == 1

    async def test_a_cache_gives_what_was_put_last(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            assert await world.state.cache_get("offer") is None
            await world.state.cache_put("offer", b"\x00\xff one", lifetime_seconds=LONG_SECONDS)
            assert await world.other.cache_get("offer") == b"\x00\xff one"
            await world.other.cache_put("offer", b"", lifetime_seconds=LONG_SECONDS)
            assert await world.state.cache_get("offer") == b""
            await world.state.cache_drop("offer")
            await world.state.cache_drop("offer")
            assert await world.other.cache_get("offer") is None

    async def test_a_cached_value_ends_with_its_latest_lifetime(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            for key, first, second in [
                ("short", LONG_SECONDS, world.brief_seconds),
                ("long", world.brief_seconds, LONG_SECONDS),
            ]:
                await world.state.cache_put(key, b"1", lifetime_seconds=first)
                await world.state.cache_put(key, b"2", lifetime_seconds=second)
            await world.elapse(world.brief_seconds)
            assert await world.state.cache_get("short") is None
            assert await world.state.cache_get("long") == b"2"

    async def test_only_one_of_fifty_is_the_first(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            firsts: list[bool] = []

            async def ask(state: SharedState) -> None:
                firsts.append(await state.first_time("event-1", lifetime_seconds=LONG_SECONDS))

            async with anyio.create_task_group() as tasks:
                for _ in range(25):
                    tasks.start_soon(ask, world.state)
                    tasks.start_soon(ask, world.other)
            assert sorted(firsts) == [False] * 49 + [True]
            assert await world.state.first_time("event-2", lifetime_seconds=LONG_SECONDS)

    async def test_a_first_time_is_forgotten_so_long_after_it(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            lifetime = unhurried(world)
            assert await world.state.first_time("event", lifetime_seconds=lifetime)
            await world.state.first_time("event", lifetime_seconds=LONG_SECONDS)
            await world.elapse(lifetime)
            assert await world.state.first_time("event", lifetime_seconds=LONG_SECONDS)
            assert not await world.state.first_time("event", lifetime_seconds=LONG_SECONDS)

    async def test_kinds_of_state_do_not_meet(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            state = world.state
            assert await state.acquire("x", "me", lease_seconds=LONG_SECONDS)
            assert await state.first_time("x", lifetime_seconds=LONG_SECONDS)
            await state.cache_put("x", b"cached", lifetime_seconds=LONG_SECONDS)
            await state.beat("x", {}, lifetime_seconds=LONG_SECONDS)
            assert await state.count("x", 7, lifetime_seconds=LONG_SECONDS) == 7
            assert await allowed(state, 3, 2, "x") == 2
            assert await state.cache_get("x") == b"cached"
            assert await state.counted("x") == 7
            assert await state.heartbeats() == [Heartbeat("x", {})]

    @pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
    async def test_nothing_lives_for_no_time_or_for_ever(
        self, make_state: StateFactory, seconds: float
    ) -> None:
        async with opened(make_state) as world:
            state = world.state
            lock = await take(state, "me")
            for refused in (
                state.rate_limit(KEY, 1, seconds, when_away="allow"),
                state.rate_limit_add(KEY, 1, window_seconds=seconds),
                state.count("x", lifetime_seconds=seconds),
                state.cache_put("x", b"", lifetime_seconds=seconds),
                state.first_time("x", lifetime_seconds=seconds),
                state.acquire("x", "me", lease_seconds=seconds),
                state.renew(lock, lease_seconds=seconds),
                state.beat("x", {}, lifetime_seconds=seconds),
            ):
                with pytest.raises(ValueError, match="give one above zero"):
                    await refused
            assert await allowed(state, 2, 1) == 1
            assert await state.counted("x") == 0
            assert await state.cache_get("x") is None
            assert await state.first_time("x", lifetime_seconds=LONG_SECONDS)
            assert await state.acquire("x", "me", lease_seconds=LONG_SECONDS)
            assert await state.heartbeats() == []
            assert await state.release(lock)


class LockConformance:
    """The promises of locks."""

    async def test_a_held_lock_is_given_to_nobody(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            lock = await take(world.state, "a")
            for state, holder in ((world.other, "b"), (world.state, "a")):
                assert await state.acquire("sync", holder, lease_seconds=LONG_SECONDS) is None
            assert (lock.name, lock.holder) == ("sync", "a")
            assert await world.other.acquire("another", "b", lease_seconds=LONG_SECONDS)

    async def test_of_fifty_at_once_one_gets_the_lock(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            given: list[Lock | None] = []

            async def ask(number: int) -> None:
                state = world.state if number % 2 else world.other
                given.append(await state.acquire("sync", str(number), lease_seconds=LONG_SECONDS))

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(ask, number)
            assert len(given) == 50
            assert len([lock for lock in given if lock is not None]) == 1

    async def test_a_released_lock_is_free_and_releasing_again_does_nothing(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            first = await take(world.state, "a")
            assert await world.state.release(first)
            second = await take(world.other, "b")
            assert not await world.state.release(first)
            assert not await world.state.renew(first, lease_seconds=LONG_SECONDS)
            assert await world.other.release(second)

    async def test_fences_grow_however_a_lock_ends(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            fences: list[int] = []
            for number in range(3):
                lock = await take(world.state, "a")
                assert await world.state.renew(lock, lease_seconds=LONG_SECONDS)
                assert await world.state.release(lock)
                fences.append(lock.fence)
                fences.append((await take(world.other, str(number), world.brief_seconds)).fence)
                await world.elapse(world.brief_seconds)
            assert fences == sorted(set(fences))
            assert fences[0] > 0

    async def test_a_holder_that_slept_through_its_lease_is_refused(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            sleeper = await take(world.state, "a", world.brief_seconds)
            await world.elapse(world.brief_seconds)
            assert not await world.state.renew(sleeper, lease_seconds=LONG_SECONDS)
            assert not await world.state.release(sleeper)
            successor = await take(world.other, "b")
            assert not await world.state.renew(sleeper, lease_seconds=LONG_SECONDS)
            assert not await world.state.release(sleeper)
            assert successor.fence > sleeper.fence
            assert await world.other.renew(successor, lease_seconds=LONG_SECONDS)

    async def test_the_same_holder_with_an_older_fence_is_refused(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            older = await take(world.state, "a", world.brief_seconds)
            await world.elapse(world.brief_seconds)
            newer = await take(world.state, "a")
            assert not await world.state.renew(older, lease_seconds=LONG_SECONDS)
            assert not await world.state.release(older)
            assert await world.state.release(newer)

    async def test_another_holder_with_the_same_fence_is_refused(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            lock = await take(world.state, "a")
            stolen = Lock(lock.name, "b", lock.fence)
            assert not await world.state.renew(stolen, lease_seconds=LONG_SECONDS)
            assert not await world.state.release(stolen)
            assert await world.state.release(lock)

    async def test_renewing_sets_the_end_anew(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            shortened = await take(world.state, "a")
            assert await world.state.renew(shortened, lease_seconds=world.brief_seconds)
            await world.elapse(world.brief_seconds)
            prolonged = await take(world.state, "b", unhurried(world))
            assert await world.state.renew(prolonged, lease_seconds=LONG_SECONDS)
            await world.elapse(unhurried(world))
            assert await world.other.acquire("sync", "c", lease_seconds=LONG_SECONDS) is None
            assert await world.state.release(prolonged)


class TopicConformance:
    """The promises of topics."""

    async def test_every_listener_hears_everything_in_order(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            payloads = [f"\u20b9 {number}".encode() for number in range(100)]
            async with (
                world.state.listen("offers") as first,
                world.other.listen("offers") as second,
                world.state.listen("offers") as third,
            ):
                for payload in payloads:
                    await world.other.publish("offers", payload)
                for listener in (first, second, third):
                    heard = [await listener.receive(PATIENCE_SECONDS) for _ in payloads]
                    assert heard == payloads

    async def test_only_what_is_said_while_listening_is_heard(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            async with world.state.listen("offers") as listener:
                await world.other.publish("other", b"elsewhere")
                await world.other.publish("offers", b"now")
                assert await listener.receive(PATIENCE_SECONDS) == b"now"
                assert await listener.receive(0.01) is None
                await world.state.publish("offers", b"before the next")
                # The nodes of a cluster pass it on in their own time.
                assert await listener.receive(PATIENCE_SECONDS) == b"before the next"
            async with world.state.listen("offers") as listener:
                assert await listener.receive(0.01) is None

    async def test_a_waiting_listener_is_woken(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world, world.state.listen("offers") as listener:
            heard: list[bytes | None] = []

            async def wait() -> None:
                heard.append(await listener.receive(PATIENCE_SECONDS))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                assert heard == []
                await world.other.publish("offers", b"")
            assert heard == [b""]


class HeartbeatConformance:
    """The promises of heartbeats."""

    async def test_heartbeats_appear_with_their_latest_details_in_order(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            assert await world.state.heartbeats() == []
            for worker_id, roles in (("b", "clicks"), ("a:1", "all"), ("b", "email \u20b9")):
                await world.other.beat(worker_id, {"roles": roles}, lifetime_seconds=LONG_SECONDS)
            assert await world.state.heartbeats() == [
                Heartbeat("a:1", {"roles": "all"}),
                Heartbeat("b", {"roles": "email \u20b9"}),
            ]

    async def test_a_worker_that_is_silent_vanishes_alone(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            await world.state.beat("living", {}, lifetime_seconds=LONG_SECONDS)
            await world.state.beat("dead", {}, lifetime_seconds=world.brief_seconds)
            await world.elapse(world.brief_seconds)
            assert await world.other.heartbeats() == [Heartbeat("living", {})]

    async def test_a_worker_that_beats_again_is_back(self, make_state: StateFactory) -> None:
        async with opened(make_state) as world:
            await world.state.beat("a", {"run": "1"}, lifetime_seconds=world.brief_seconds)
            await world.elapse(world.brief_seconds)
            await world.state.beat("a", {"run": "2"}, lifetime_seconds=LONG_SECONDS)
            assert await world.other.heartbeats() == [Heartbeat("a", {"run": "2"})]

    async def test_a_worker_that_ends_in_order_is_forgotten_at_once(
        self, make_state: StateFactory
    ) -> None:
        async with opened(make_state) as world:
            for worker_id in ("a", "b"):
                await world.state.beat(worker_id, {}, lifetime_seconds=LONG_SECONDS)
            await world.other.silence("a")
            await world.other.silence("unknown")
            assert await world.state.heartbeats() == [Heartbeat("b", {})]


class SharedStateConformance(
    RateLimitConformance,
    CounterAndCacheConformance,
    LockConformance,
    TopicConformance,
    HeartbeatConformance,
):
    """The promises of `couponflow.kernel.shared_state`."""
