"""How long to wait before trying again."""

import random
from collections.abc import Iterator


def exponential_backoff(
    first_seconds: float, max_seconds: float, randomness: random.Random
) -> Iterator[float]:
    """Yield waits that double from `first_seconds` to `max_seconds`, each jittered by up to half.

    The jitter (between half and all of the wait) keeps many daemons from knocking on a recovering
    database at the same instant, yet never retries at once.
    """
    wait = first_seconds
    while True:
        yield wait * (0.5 + randomness.random() / 2)
        wait = min(wait * 2, max_seconds)
