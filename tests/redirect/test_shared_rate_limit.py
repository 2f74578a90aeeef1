from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.config import RedisSettings
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.redis_client import Redis, open_redis
from couponflow.kernel.shared_state import SharedState, SharedStateAway, WindowCount
from couponflow.kernel.shared_state_memory import MemorySharedState
from couponflow.kernel.shared_state_redis import RedisSharedState
from couponflow.redirect.rate_limit import MAX_CHANGED, WINDOW_SECONDS, RateLimit
from couponflow.redirect.shared_rate_limit import (
    CHECK,
    KEY,
    MAX_ADDRESSES_A_SYNC,
    SharedRateLimit,
)
from tests.redis_server import RedisServer
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, until

ADDRESS = "198.51.100.4"


class FickleState(MemorySharedState):
    """A shared state that can be away, with or without having heard."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.away = False
        self.asked = 0

    async def counted(self, key: str) -> int:
        if self.away:
            raise SharedStateAway("away")
        return await super().counted(key)

    async def rate_limit_add(self, key: str, amount: int, *, window_seconds: float) -> WindowCount:
        self.asked += 1
        if self.away:
            raise SharedStateAway("away")
        return await super().rate_limit_add(key, amount, window_seconds=window_seconds)


class SharingDaemon:
    """One of several that share a rate limit."""

    def __init__(
        self, per_minute: int, shared: SharedState, clock: ManualClock | SystemClock
    ) -> None:
        self.clock = clock
        self.health = HealthBoard(clock)
        self.limit = RateLimit(per_minute, shared=True)
        self.sharing = SharedRateLimit(self.limit, shared, self.health, clock)

    def click(self, times: int = 1, address: str = ADDRESS) -> int:
        """Click so often; how many clicks were allowed."""
        return [self.wait(address) for _ in range(times)].count(0.0)

    def wait(self, address: str = ADDRESS) -> float:
        return self.limit.retry_after_seconds(address, self.clock.monotonic())

    def check(self) -> tuple[bool, str]:
        check = self.health.snapshot().checks[CHECK]
        return check.ok, check.detail


def two_daemons(per_minute: int) -> tuple[SharingDaemon, SharingDaemon, FickleState, ManualClock]:
    clock = ManualClock()
    state = FickleState(clock)
    return (
        SharingDaemon(per_minute, state, clock),
        SharingDaemon(per_minute, state, clock),
        state,
        clock,
    )


async def sync(*daemons: SharingDaemon) -> None:
    for daemon in daemons:
        await daemon.sharing.sync()


async def shared_count(state: MemorySharedState, address: str = ADDRESS) -> int:
    """What Redis would show, without changing it."""
    return (await state.rate_limit_add(KEY + address, 0, window_seconds=1.0)).count


async def test_what_one_daemon_allowed_the_other_counts() -> None:
    one, other, state, _ = two_daemons(100)
    assert one.click(60) == 60
    await sync(one)
    assert other.click() == 1
    await sync(other)
    assert other.click(60) == 39
    await sync(other)
    assert one.click() == 1
    await sync(one)
    assert one.click() == 0
    # The one click too many came before its daemon had heard of the others' last.
    assert await shared_count(state) == 101


async def test_both_wait_for_the_end_of_the_same_minute() -> None:
    one, other, _, clock = two_daemons(10)
    one.click(9)
    await sync(one)
    clock.advance(20.0)
    assert other.click() == 1
    await sync(other)
    assert other.wait() == 40.0
    clock.advance(40.0)
    assert (one.click(20), other.click(20)) == (10, 10)


async def test_a_minute_that_is_shared_late_does_not_end_later() -> None:
    one, other, _, clock = two_daemons(10)
    one.click(9)
    clock.advance(45.0)
    await sync(one)
    assert other.click() == 1
    await sync(other)
    assert (one.click(2), one.wait(), other.wait()) == (1, 15.0, 15.0)


async def test_a_new_minute_is_counted_anew() -> None:
    one, other, state, clock = two_daemons(10)
    one.click(10)
    await sync(one, other)
    clock.advance(WINDOW_SECONDS)
    assert one.click(4) == 4
    await sync(one)
    assert other.click() == 1
    await sync(other)
    assert other.click(20) == 5
    await sync(other)
    assert await shared_count(state) == 10


async def test_an_ipv6_household_is_shared_as_one() -> None:
    one, other, state, _ = two_daemons(3)
    assert one.click(2, "2001:db8:0:1::1") == 2
    await sync(one)
    assert other.click(1, "2001:db8:0:1:ffff::9") == 1
    await sync(other)
    assert other.click(1, "2001:db8:0:1::7") == 0
    assert await shared_count(state, "2001:0db8:0000:0001::/64") == 3


async def test_clicks_during_a_sync_are_not_lost() -> None:
    one, *_ = two_daemons(100)
    one.click(5)
    (change,) = one.limit.take_changed(10, one.clock.monotonic())
    one.click(3)
    one.limit.learn(change, 20, one.clock.monotonic() + 30.0)
    assert one.click(100) == 77
    (change,) = one.limit.take_changed(10, one.clock.monotonic())
    assert (change.count, change.amount) == (100, 80)


async def test_without_redis_each_daemon_counts_alone_and_says_so() -> None:
    one, other, state, _ = two_daemons(10)
    await sync(one, other)
    assert one.check() == (True, "")
    state.away = True
    one.click()
    await sync(one)
    assert one.check() == (False, "counted by this daemon alone: away")
    assert (one.click(20), other.click(20)) == (9, 10)
    state.away = False
    await sync(one, other)
    assert (one.check(), other.check()) == ((True, ""), (True, ""))
    # What could not be shared is, though both are refused and nothing new came.
    assert await shared_count(state) == 20


async def test_an_outage_is_asked_about_once_a_sync() -> None:
    one, _, state, _ = two_daemons(10)
    await sync(one)
    for number in range(MAX_ADDRESSES_A_SYNC):
        one.click(1, f"198.51.100.{number}")
    state.away = True
    await sync(one)
    at_most_the_senders = state.asked
    assert at_most_the_senders <= 4
    await sync(one)
    await sync(one)
    assert state.asked == at_most_the_senders
    state.away = False
    await sync(one)
    assert state.asked == at_most_the_senders + MAX_ADDRESSES_A_SYNC


async def test_what_redis_forgets_is_not_forgotten_here() -> None:
    one, other, _, clock = two_daemons(10)
    one.click(6)
    await sync(one)
    emptied = MemorySharedState(clock)
    after = SharedRateLimit(one.limit, emptied, one.health, clock)
    one.click(2)
    await after.sync()
    assert await shared_count(emptied) == 2
    assert one.click(10) == 2
    # Only what is new: what each daemon remembers of the others would be counted twice.
    await after.sync()
    assert await shared_count(emptied) == 4
    assert other.click(20) == 10


async def test_the_addresses_with_the_most_clicks_go_first_and_the_rest_later() -> None:
    one, _, state, _ = two_daemons(1_000)
    await sync(one)
    busy = [f"203.0.113.{number}" for number in range(MAX_ADDRESSES_A_SYNC)]
    one.click(1, ADDRESS)
    for address in busy:
        one.click(2, address)
    await sync(one)
    assert [await shared_count(state, address) for address in busy] == [2] * len(busy)
    assert await shared_count(state, ADDRESS) == 0
    one.click(1, ADDRESS)
    await sync(one)
    assert await shared_count(state, ADDRESS) == 2


async def test_a_flood_of_addresses_is_noted_only_so_far() -> None:
    one, _, _, clock = two_daemons(10)
    for number in range(MAX_CHANGED + 10):
        one.click(1, f"address {number}")
    assert len(one.limit.take_changed(2 * MAX_CHANGED, clock.monotonic())) == MAX_CHANGED
    one.click(1, f"address {MAX_CHANGED}")
    (late,) = one.limit.take_changed(10, clock.monotonic())
    assert (late.key, late.amount) == (f"address {MAX_CHANGED}", 2)


async def test_a_minute_that_is_over_is_not_shared() -> None:
    one, _, state, clock = two_daemons(10)
    await sync(one)
    one.click(5)
    clock.advance(WINDOW_SECONDS)
    await sync(one)
    assert state.asked == 0


@pytest.mark.parametrize("limit", [RateLimit(10), RateLimit(0, shared=True)])
async def test_nothing_is_noted_where_nothing_is_shared(limit: RateLimit) -> None:
    for _ in range(20):
        limit.retry_after_seconds(ADDRESS, 0.0)
    assert limit.take_changed(10, 0.0) == []


@given(
    per_minute=st.integers(1, 20),
    rounds=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20),
)
def test_a_daemon_allows_what_was_left_when_it_last_shared(
    per_minute: int, rounds: list[tuple[int, int]]
) -> None:
    async def run() -> None:
        one, other, state, _ = two_daemons(per_minute)
        total, known = 0, {one: 0, other: 0}
        for clicks in rounds:
            for daemon, times in zip((one, other), clicks, strict=True):
                allowed = daemon.click(times)
                assert allowed == min(times, max(0, per_minute - known[daemon]))
                total += allowed
                await sync(daemon)
                known[daemon] = total if allowed else known[daemon]
            assert await shared_count(state) == total
        assert total <= 2 * per_minute

    anyio.run(run)


@asynccontextmanager
async def on_redis(url: str, per_minute: int) -> AsyncGenerator[tuple[SharingDaemon, Redis], None]:
    """A daemon that shares its limit for as long as the block lasts."""
    async with open_redis(RedisSettings(url=url)) as redis, anyio.create_task_group() as tasks:
        daemon = SharingDaemon(per_minute, RedisSharedState(redis), SystemClock())
        tasks.start_soon(daemon.sharing.run)
        yield daemon, redis
        tasks.cancel_scope.cancel()


async def shows(redis: Redis, address: str, count: int) -> None:
    """Return once Redis shows so many clicks of an address, for at most the minute."""
    expected = str(count).encode()
    while await redis.call(lambda client: client.get(KEY + address)) != expected:  # noqa: ASYNC110
        await anyio.sleep(POLL_SECONDS)
    assert 0 < await redis.call(lambda client: client.pttl(KEY + address)) <= WINDOW_SECONDS * 1000


async def test_daemons_share_through_redis(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with on_redis(redis_url, 100) as (one, redis), on_redis(redis_url, 100) as (other, _):
            assert (one.click(60), other.click(30)) == (60, 30)
            total, refused = 90, False
            while not refused:
                await shows(redis, ADDRESS, total)
                allowed = (one.click(), other.click())
                total, refused = total + sum(allowed), allowed == (0, 0)
            assert 100 <= total <= 104


async def test_daemons_outlive_redis_and_share_again(stoppable_redis: RedisServer) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with on_redis(stoppable_redis.url, 10) as (one, redis):
            assert one.click(5) == 5
            await shows(redis, ADDRESS, 5)
            await stoppable_redis.stop()
            assert one.click(2) == 2
            await until(lambda: not one.check()[0])
            assert one.click(2) == 2
            await stoppable_redis.start()
            await until(lambda: one.check()[0])
            await shows(redis, ADDRESS, 4)
            assert one.click(9) == 1
