"""Shoppers come at the given rate on average, and unevenly."""

import itertools
import random
from collections import Counter

import pytest

from couponflow.sandbox.rhythm import arrival_times

HOUR = 3_600


def arrivals_by_second(per_second: float, seconds: int, seed: int) -> list[int]:
    times = arrival_times(per_second, random.Random(seed))
    counts = Counter(int(at) for at in itertools.takewhile(lambda at: at < seconds, times))
    return [counts[second] for second in range(seconds)]


@pytest.mark.parametrize("per_second", [0.5, 20.0, 150.0])
def test_the_rate_is_kept_over_hours(per_second: float) -> None:
    arrived = sum(arrivals_by_second(per_second, 4 * HOUR, seed=5))
    assert arrived == pytest.approx(4 * HOUR * per_second, rel=0.03)


def test_there_are_quiet_times_and_bursts() -> None:
    by_second = arrivals_by_second(100.0, HOUR, seed=6)
    assert min(by_second) < 65
    assert max(by_second) > 180


def test_times_never_go_back_and_begin_at_once() -> None:
    times = list(itertools.islice(arrival_times(20.0, random.Random(9)), 5_000))
    assert times[0] == 0.0
    assert times == sorted(times)
