"""When shoppers come: smoothly more and fewer, now and then a burst, on average the given rate."""

import math
import random
from collections.abc import Iterator

_WAVE_SECONDS = 120.0
_WAVE_HEIGHT = 0.3
_BURST_SECONDS = (5.0, 15.0)
_CALM_SECONDS = (40.0, 80.0)
_BURST_FACTOR = (1.5, 2.5)
# Bursts of 10 seconds in 70 that double the rate, on average, add a seventh to it.
_AVERAGE_FACTOR = 8 / 7


def arrival_times(per_second: float, randomness: random.Random) -> Iterator[float]:
    """Yield, for ever, the seconds from the start at which each shopper comes."""
    elapsed = 0.0
    factor, changes_at = 1.0, randomness.uniform(*_CALM_SECONDS)
    while True:
        while elapsed >= changes_at:
            calm_follows = factor > 1.0
            factor = 1.0 if calm_follows else randomness.uniform(*_BURST_FACTOR)
            changes_at += randomness.uniform(*(_CALM_SECONDS if calm_follows else _BURST_SECONDS))
        wave = 1 + _WAVE_HEIGHT * math.sin(2 * math.pi * elapsed / _WAVE_SECONDS)
        yield elapsed
        # Half to one and a half of the interval: people do not come in step.
        interval = _AVERAGE_FACTOR / (per_second * wave * factor)
        elapsed += interval * randomness.uniform(0.5, 1.5)
