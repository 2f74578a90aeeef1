import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.redirect.rate_limit import WINDOW_SECONDS, RateLimit

ADDRESS = "198.51.100.4"


def allowed(limit: RateLimit, address: str, moments: list[float]) -> int:
    return sum(limit.retry_after_seconds(address, moment) == 0 for moment in moments)


def test_the_limit_is_exact_and_says_how_long_to_wait() -> None:
    limit = RateLimit(3)
    answers = [limit.retry_after_seconds(ADDRESS, now) for now in (100.0, 101.0, 102.0, 103.0)]
    assert answers == [0, 0, 0, 57.0]
    assert limit.retry_after_seconds(ADDRESS, 159.5) == 0.5


def test_a_new_minute_begins_with_the_next_request() -> None:
    limit = RateLimit(2)
    assert allowed(limit, ADDRESS, [0.0, 59.0, 59.9]) == 2
    assert allowed(limit, ADDRESS, [60.0, 60.0, 60.0]) == 2


def test_zero_allows_everything() -> None:
    assert allowed(RateLimit(0), ADDRESS, [0.0] * 1000) == 1000


def test_addresses_are_counted_apart() -> None:
    limit = RateLimit(1)
    assert [limit.retry_after_seconds(f"198.51.100.{n}", 0.0) for n in range(5)] == [0] * 5


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("2001:db8:2:3::1", "2001:db8:2:3:ffff::9", True),
        ("2001:db8:2:3::1", "2001:db8:2:4::1", False),
        ("not an address:", "not an address:", True),
    ],
)
def test_an_ipv6_household_counts_as_one(first: str, second: str, together: bool) -> None:
    limit = RateLimit(1)
    assert limit.retry_after_seconds(first, 0.0) == 0
    assert (limit.retry_after_seconds(second, 0.0) > 0) is together


@given(
    per_minute=st.integers(1, 6),
    pauses=st.lists(st.integers(0, 25), min_size=1, max_size=60),
)
def test_a_window_begins_with_its_first_request_and_has_exactly_n(
    per_minute: int, pauses: list[int]
) -> None:
    limit = RateLimit(per_minute)
    now = 0
    began, count = float("-inf"), 0
    for pause in pauses:
        now += pause
        if now - began >= WINDOW_SECONDS:
            began, count = now, 0
        count += 1
        wait = limit.retry_after_seconds(ADDRESS, float(now))
        assert wait == (0 if count <= per_minute else began + WINDOW_SECONDS - now)
