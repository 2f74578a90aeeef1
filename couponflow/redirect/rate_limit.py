"""How many clicks one address may make in a minute."""

import ipaddress

from couponflow.redirect.recent import Recent

WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 200_000
"""About 90 MB; a flood from more addresses than this is let through rather than remembered."""


class RateLimit:
    """Allows `per_minute` requests in the minute that begins with an address's first.

    An IPv6 address counts as its /64, which is what one household is given. Zero allows all.
    """

    __slots__ = ("_per_minute", "_windows")

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        # Each value: when the window began, and how many requests came in it.
        self._windows: Recent[str, list[float]] = Recent(WINDOW_SECONDS, MAX_ADDRESSES)

    def retry_after_seconds(self, address: str, now: float) -> float:
        """Count one request at `now` (monotonic); 0 if it is allowed, else how long to wait."""
        if not self._per_minute:
            return 0.0
        key = address if ":" not in address else _household(address)
        window = self._windows.get(key)
        if window is None or now - window[0] >= WINDOW_SECONDS:
            self._windows.put(key, [now, 1], now)
            return 0.0
        if window[1] < self._per_minute:
            window[1] += 1
            return 0.0
        return window[0] + WINDOW_SECONDS - now


def _household(address: str) -> str:
    try:
        return ipaddress.IPv6Address(address).packed[:8].hex()
    except ValueError:
        return address
