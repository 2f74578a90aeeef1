"""A bounded memory of what happened within the last window, for limits and duplicates."""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Remembers values for one to two windows, in at most `2 * max_entries` entries.

    Two generations: when a window has passed, or the young one is full, the old one is dropped
    whole and the young one takes its place. So nothing is ever swept entry by entry, and a flood
    of keys shortens the memory instead of growing it.
    """

    __slots__ = ("_max_entries", "_old", "_rotate_at", "_window_seconds", "_young")

    def __init__(self, window_seconds: float, max_entries: int) -> None:
        self._window_seconds = window_seconds
        self._max_entries = max_entries
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._rotate_at = float("-inf")

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        return found if found is not None else self._old.get(key)

    def put(self, key: K, value: V, now: float) -> None:
        if now >= self._rotate_at or len(self._young) >= self._max_entries:
            self._old = self._young
            self._young = {}
            self._rotate_at = now + self._window_seconds
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
