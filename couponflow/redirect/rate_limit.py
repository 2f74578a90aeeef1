"""How many clicks one address may make in a minute."""

import heapq
import ipaddress

import msgspec

from couponflow.redirect.recent import Recent

WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 200_000
"""About 90 MB; a flood from more addresses than this is let through rather than remembered."""
MAX_CHANGED = 5_000
"""Addresses noted for sharing at once: walking through them takes about a millisecond."""


class Window(msgspec.Struct, gc=False):
    """The minute that is under way for an address."""

    ends_at: float
    """Monotonic seconds."""
    count: int
    """Requests allowed in it, as far as is known here: by this daemon, and by others."""
    shared: int
    """What of `count` the other daemons can know."""
    noted: bool
    """Whether it need not be noted for sharing."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """What of an address's window is to be shared."""

    key: str
    window: Window
    count: int
    """The window's count at this instant."""
    amount: int
    """How much of it is not shared."""


class RateLimit:
    """Allows `per_minute` requests in the minute that begins with an address's first.

    An IPv6 address counts as its /64, which is what one household is given. Zero allows all. With
    `shared`, the windows that changed are noted, for `shared_rate_limit.py` to tell other daemons
    of and to learn from them.
    """

    __slots__ = ("_alone", "_changed", "_per_minute", "_windows")

    def __init__(self, per_minute: int, *, shared: bool = False) -> None:
        self._per_minute = per_minute
        self._windows: Recent[str, Window] = Recent(WINDOW_SECONDS, MAX_ADDRESSES)
        # A daemon alone makes windows that need no noting, so that it never looks further.
        self._alone = not (shared and per_minute)
        self._changed: list[tuple[str, Window]] = []

    def retry_after_seconds(self, address: str, now: float) -> float:
        """Count one request at `now` (monotonic); 0 if it is allowed, else how long to wait."""
        if not self._per_minute:
            return 0.0
        key = address if ":" not in address else _household(address)
        window = self._windows.get(key)
        if window is None or now >= window.ends_at:
            window = Window(now + WINDOW_SECONDS, 1, 0, self._alone)
            self._windows.put(key, window, now)
        elif window.count < self._per_minute:
            window.count += 1
        else:
            return window.ends_at - now
        if not window.noted:
            self._note(key, window)
        return 0.0

    def _note(self, key: str, window: Window) -> None:
        if len(self._changed) < MAX_CHANGED:
            window.noted = True
            self._changed.append((key, window))

    def take_changed(self, limit: int, now: float) -> list[Change]:
        """What is to be shared, at most `limit` addresses: those with the most.

        The rest is taken with what it has by then when it next changes; an address that never
        does is far from any limit.
        """
        changed, self._changed = self._changed, []
        for _, window in changed:
            window.noted = False
        changes = [
            Change(key, window, window.count, window.count - window.shared)
            for key, window in changed
            if now < window.ends_at and window.count > window.shared
        ]
        return heapq.nlargest(limit, changes, key=lambda change: change.amount)

    def keep(self, change: Change) -> None:
        """Note once more what was taken but could not be shared."""
        if not change.window.noted:
            self._note(change.key, change.window)

    def learn(self, change: Change, count: int, ends_at: float) -> None:
        """Take over what the installation counts in the window, now that `change` is part of it.

        A count never falls within a window, whatever Redis has forgotten.
        """
        window = change.window
        since = window.count - change.count
        window.count = max(window.count, count + since)
        window.shared = window.count - since
        window.ends_at = ends_at


def _household(address: str) -> str:
    try:
        return f"{ipaddress.IPv6Address(address).packed[:8].hex(':', 2)}::/64"
    except ValueError:
        return address
