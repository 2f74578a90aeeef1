from couponflow.kernel.clock import ManualClock, SystemClock


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(100.0)
    assert (clock.now(), clock.monotonic()) == (100.0, 0.0)
    clock.advance(2.5)
    clock.advance(1.0)
    assert (clock.now(), clock.monotonic()) == (103.5, 3.5)


def test_the_system_clock_goes_on() -> None:
    clock = SystemClock()
    first, begun_at = clock.now(), clock.monotonic()
    assert first > 1_700_000_000
    while clock.monotonic() == begun_at:
        pass
    assert clock.monotonic() > begun_at
