import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.backoff import exponential_backoff


class Always(random.Random):
    """Randomness that always says the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


def waits(count: int, randomness: random.Random) -> list[float]:
    return list(itertools.islice(exponential_backoff(0.5, 5.0, randomness), count))


def test_waits_double_up_to_the_longest() -> None:
    assert waits(6, Always(1.0)) == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_jitter_takes_off_half_at_most() -> None:
    assert waits(6, Always(0.0)) == [0.25, 0.5, 1.0, 2.0, 2.5, 2.5]


def test_equal_randomness_gives_equal_waits() -> None:
    assert waits(20, random.Random(7)) == waits(20, random.Random(7))
    assert waits(20, random.Random(7)) != waits(20, random.Random(8))


@given(
    first=st.floats(0.001, 10.0),
    longest=st.floats(10.0, 1000.0),
    randomness=st.randoms(use_true_random=False),
)
def test_no_wait_is_too_short_or_too_long(
    first: float, longest: float, randomness: random.Random
) -> None:
    ceiling = first
    for wait in itertools.islice(exponential_backoff(first, longest, randomness), 30):
        assert ceiling / 2 <= wait <= ceiling
        ceiling = min(ceiling * 2, longest)
    assert ceiling == longest
