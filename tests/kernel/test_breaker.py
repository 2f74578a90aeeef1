from collections.abc import Iterable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from couponflow.kernel.breaker import REST_MAX_SECONDS, UNLIMITED, DeadLetterBreaker
from couponflow.kernel.clock import ManualClock
from tests.samples import PATIENCE_SECONDS, until

DEAD, WELL = True, False


@pytest.fixture
def breaker(manual_clock: ManualClock) -> DeadLetterBreaker:
    return DeadLetterBreaker(manual_clock, channel="emails")


def record_all(breaker: DeadLetterBreaker, ends: Iterable[bool]) -> None:
    for dead in ends:
        breaker.record(dead)


def open_it(breaker: DeadLetterBreaker) -> None:
    """Let as many die as open a breaker that has seen nothing yet."""
    record_all(breaker, [DEAD] * 20)
    assert breaker.state == "open"


# Opening


def test_nothing_is_held_back_at_first(breaker: DeadLetterBreaker) -> None:
    assert (breaker.state, breaker.allows()) == ("closed", UNLIMITED)


def test_it_opens_when_nearly_all_have_died(breaker: DeadLetterBreaker) -> None:
    buried = [breaker.about_to_bury() for _ in range(30)]

    assert buried == [True] * 19 + [False] * 11
    assert (breaker.state, breaker.allows()) == ("open", 0)


def test_too_few_ends_say_nothing(breaker: DeadLetterBreaker) -> None:
    record_all(breaker, [DEAD] * 19)

    assert breaker.state == "closed"


@pytest.mark.parametrize(("well", "state"), [(4, "open"), (5, "closed")])
def test_the_share_decides(breaker: DeadLetterBreaker, well: int, state: str) -> None:
    record_all(breaker, [WELL] * well + [DEAD] * (20 - well))

    assert breaker.state == state


def test_only_the_latest_ends_count(breaker: DeadLetterBreaker) -> None:
    record_all(breaker, [WELL] * 1000)

    buried = [breaker.about_to_bury() for _ in range(40)]

    assert buried == [True] * 39 + [False]


def test_a_share_that_is_no_binary_fraction_is_reached_exactly(manual_clock: ManualClock) -> None:
    breaker = DeadLetterBreaker(manual_clock, window=30, share=0.1, least=30)
    record_all(breaker, [WELL] * 27 + [DEAD] * 3)

    assert breaker.state == "open"


def test_a_window_shorter_than_the_least_is_as_long_as_it(manual_clock: ManualClock) -> None:
    breaker = DeadLetterBreaker(manual_clock, window=5, least=10)
    record_all(breaker, [DEAD] * 10)

    assert breaker.state == "open"


# Resting and trying


def test_what_ends_while_it_is_open_changes_nothing(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(29)
    breaker.record(WELL)

    assert not breaker.about_to_bury()
    assert breaker.state == "open"
    manual_clock.advance(1)
    assert (breaker.state, breaker.allows()) == ("half-open", 1)


def test_a_message_that_ends_well_closes_it(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(30)
    breaker.record(WELL)

    assert (breaker.state, breaker.allows()) == ("closed", UNLIMITED)
    assert [breaker.about_to_bury() for _ in range(20)] == [True] * 19 + [False]


def test_a_death_opens_it_again_and_is_kept(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(30)

    assert not breaker.about_to_bury()
    assert breaker.state == "open"


def test_each_rest_is_twice_as_long_up_to_the_longest(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)

    for seconds in (30, 60, 120, 240, 480, REST_MAX_SECONDS, REST_MAX_SECONDS):
        manual_clock.advance(seconds - 1)
        assert breaker.state == "open"
        manual_clock.advance(1)
        assert breaker.state == "half-open"
        breaker.record(DEAD)


def test_one_lucky_message_does_not_shorten_the_rest(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(30)
    breaker.record(WELL)
    open_it(breaker)
    manual_clock.advance(59)

    assert breaker.state == "open"


def test_the_rest_is_short_again_when_enough_have_ended_well(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(30)
    breaker.record(WELL)
    record_all(breaker, [WELL] * 20 + [DEAD] * 40)
    assert breaker.state == "open"
    manual_clock.advance(30)

    assert breaker.state == "half-open"


def test_one_message_at_a_time_is_tried(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(30)

    with breaker.attempt():
        assert breaker.allows() == 0
    # It is to be repeated, so nothing was recorded, and the next may be tried.
    assert (breaker.state, breaker.allows()) == ("half-open", 1)


def test_an_attempt_that_fails_is_no_longer_under_way(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    open_it(breaker)
    manual_clock.advance(30)

    with pytest.raises(RuntimeError), breaker.attempt():
        raise RuntimeError

    assert breaker.allows() == 1


# Waiting


async def test_nobody_waits_for_a_closed_breaker(breaker: DeadLetterBreaker) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        await breaker.until_allowed()


class WatchedClock(ManualClock):
    """Counts how often it is looked at."""

    looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return super().monotonic()


async def test_waiting_ends_with_the_rest() -> None:
    clock = WatchedClock()
    breaker = DeadLetterBreaker(clock, least=1, rest_seconds=0.001)
    breaker.record(DEAD)
    returned = anyio.Event()

    async def wait() -> None:
        await breaker.until_allowed()
        returned.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        # It wakes after a millisecond of real time, and sees that the clock stands still.
        await until(lambda: clock.looks > 10)
        assert not returned.is_set()
        clock.advance(0.001)
        await until(returned.is_set)
    assert breaker.state == "half-open"


@pytest.mark.parametrize("end", [None, WELL])
async def test_waiting_ends_with_the_attempt_that_is_under_way(
    breaker: DeadLetterBreaker, manual_clock: ManualClock, end: bool | None
) -> None:
    open_it(breaker)
    manual_clock.advance(30)
    returned = anyio.Event()

    async def wait() -> None:
        await breaker.until_allowed()
        returned.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            with breaker.attempt():
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                assert not returned.is_set()
                if end is not None:
                    breaker.record(end)


# What is told


def test_the_operator_reads_what_happens_and_what_to_do(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    assert breaker.detail() == "0 of the last 0 messages died"
    record_all(breaker, [WELL] * 4 + [DEAD] * 15)
    assert breaker.detail() == "15 of the last 19 messages died"
    breaker.about_to_bury()
    breaker.about_to_bury()
    stopped = (
        "stopped: 16 of the last 20 messages died, so the fault is probably not theirs. "
        "`couponflow dead-letters list --channel emails` shows why; mend the cause. Further "
        "messages wait and are not lost (2 were kept from dying)"
    )
    manual_clock.advance(0.5)
    assert breaker.detail() == f"{stopped}; one is tried in 30 s"
    manual_clock.advance(29.5)
    assert breaker.detail() == f"{stopped}; one at a time is tried now"


def test_opening_and_closing_are_logged(
    breaker: DeadLetterBreaker, manual_clock: ManualClock
) -> None:
    with capture_logs() as logs:
        open_it(breaker)
        manual_clock.advance(30)
        breaker.record(WELL)

    assert logs == [
        {
            "event": "nearly every message dies: consumers rest",
            "log_level": "error",
            "channel": "emails",
            "dead": 20,
            "ended": 20,
            "rest_seconds": 30.0,
        },
        {
            "event": "a message ended well: consumers go on",
            "log_level": "info",
            "channel": "emails",
        },
    ]


# Whatever happens

steps = st.lists(st.one_of(st.booleans(), st.sampled_from([1, 29, 30, 61, 700])), max_size=300)


@given(steps)
def test_of_deaths_alone_few_are_buried(steps: list[bool | int]) -> None:
    """However long everything dies, no more are buried than open the breaker once."""
    clock = ManualClock()
    breaker = DeadLetterBreaker(clock)
    buried = 0
    for step in steps:
        if isinstance(step, bool):
            buried += breaker.about_to_bury()
        else:
            clock.advance(step)

    assert buried == min(19, sum(isinstance(step, bool) for step in steps))


@given(steps)
def test_it_is_as_a_simple_model_says(steps: list[bool | int]) -> None:
    clock = ManualClock()
    breaker = DeadLetterBreaker(clock, window=6, least=3, share=0.5)
    ends: list[bool] = []
    rested_at: float | None = None
    rest = 30.0
    for step in steps:
        if not isinstance(step, bool):
            clock.advance(step)
        elif rested_at is None:
            breaker.record(step)
            ends = [*ends, step][-6:]
            opens = len(ends) >= 3 and 2 * sum(ends) >= len(ends)
            rested_at = clock.monotonic() + rest if opens else None
            if len(ends) >= 3:
                rest = min(2 * rest, REST_MAX_SECONDS) if opens else 30.0
        else:
            breaker.record(step)
            if clock.monotonic() >= rested_at and step:
                rested_at = clock.monotonic() + rest
                rest = min(2 * rest, REST_MAX_SECONDS)
            elif clock.monotonic() >= rested_at:
                rested_at, ends = None, []
        allowed = 1 if rested_at is None or clock.monotonic() >= rested_at else 0
        assert breaker.allows() == (UNLIMITED if rested_at is None else allowed)
