"""What replays have in common: going through what matches, and telling what became of it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

_LEFT_NAMED = 1_000

Outcome = Literal["refused", "skipped"]
Progress = Callable[[int], None]
"""Told how many have been dealt with so far."""

T = TypeVar("T")


class Left(Protocol):
    """Something that was not replayed, and why."""

    @property
    def id(self) -> str: ...

    @property
    def outcome(self) -> Outcome: ...

    @property
    def reason(self) -> str: ...


L = TypeVar("L", bound=Left)


class Replayed(msgspec.Struct, Generic[L], frozen=True, kw_only=True):
    """What became of what a replay looked at."""

    replayed: int
    refused: int
    skipped: int
    left: list[L]
    """The refused and skipped ones, the first 1,000 of them."""
    more: bool
    """The limit was reached, and others that matched were left because of it."""


class Tally(Generic[L]):
    """What became of what was looked at so far."""

    def __init__(self) -> None:
        self._replayed = 0
        self._counts: dict[Outcome, int] = {"refused": 0, "skipped": 0}
        self._left: list[L] = []

    def add(self, replayed: int, left: Sequence[L]) -> None:
        self._replayed += replayed
        for each in left:
            self._counts[each.outcome] += 1
        self._left += left[: _LEFT_NAMED - len(self._left)]

    def report(self, *, more: bool) -> Replayed[L]:
        return Replayed(replayed=self._replayed, **self._counts, left=self._left, more=more)


async def walk(
    deal_with: Callable[[T | None, int], Awaitable[Sequence[T]]],
    any_after: Callable[[T | None], Awaitable[bool]],
    *,
    batch: int,
    limit: int | None,
    expected: int | None,
    progress: Progress | None,
) -> bool:
    """Deal with what matches, some at a time; whether `limit` or `expected` left any of it.

    `deal_with` is told the last of those before, and how many it may look at; it returns those it
    looked at, and fewer than that when there are no others.
    """
    bound = min((each for each in (limit, expected) if each is not None), default=None)
    seen = 0
    last: T | None = None
    while bound is None or seen < bound:
        wanted = batch if bound is None else min(batch, bound - seen)
        found = await deal_with(last, wanted)
        seen += len(found)
        if progress is not None:
            progress(seen)
        if len(found) < wanted:
            return False
        last = found[-1]
    return await any_after(last)
