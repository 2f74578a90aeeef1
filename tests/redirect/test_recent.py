from hypothesis import given
from hypothesis import strategies as st

from couponflow.redirect.recent import Recent

WINDOW_SECONDS = 60.0
puts = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 50)), max_size=80)


def test_the_latest_value_of_a_key_is_remembered() -> None:
    recent: Recent[str, int] = Recent(WINDOW_SECONDS, 10)
    assert recent.get("a") is None
    recent.put("a", 1, 0.0)
    recent.put("b", 2, 10.0)
    recent.put("a", 3, 20.0)
    assert (recent.get("a"), recent.get("b"), len(recent)) == (3, 2, 2)


def test_what_is_two_windows_old_is_gone_once_something_new_comes() -> None:
    recent: Recent[str, int] = Recent(WINDOW_SECONDS, 10)
    recent.put("old", 1, 0.0)
    recent.put("b", 2, 60.0)
    assert recent.get("old") == 1
    recent.put("c", 3, 120.0)
    assert (recent.get("old"), recent.get("b"), recent.get("c")) == (None, 2, 3)


def test_a_flood_drops_the_oldest_half() -> None:
    recent: Recent[int, int] = Recent(WINDOW_SECONDS, 3)
    for key in range(7):
        recent.put(key, key, 0.0)
    assert [recent.get(key) for key in range(7)] == [None, None, None, 3, 4, 5, 6]


@given(puts)
def test_it_never_holds_more_than_twice_its_bound(puts: list[tuple[int, float]]) -> None:
    recent: Recent[int, float] = Recent(WINDOW_SECONDS, 3)
    now = 0.0
    for key, pause in puts:
        now += pause
        recent.put(key, now, now)
        assert len(recent) <= 6
        assert recent.get(key) == now


@given(puts)
def test_unless_flooded_it_remembers_for_a_whole_window(puts: list[tuple[int, float]]) -> None:
    recent: Recent[int, float] = Recent(WINDOW_SECONDS, 13)
    latest: dict[int, float] = {}
    now = 0.0
    for key, pause in puts:
        now += pause
        for known, put_at in latest.items():
            if now - put_at < WINDOW_SECONDS:
                assert recent.get(known) == put_at
        recent.put(key, now, now)
        latest[key] = now
