"""What this process holds of a stream, and in which order it hands it out."""

import heapq
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Generic

from couponflow.kernel.channel import Delivery, M


class Held(Delivery[M], Generic[M], frozen=True, gc=False):
    """A delivery that also knows its place in the stream and the batch it came in."""

    order: tuple[int, int]
    batch: str


def order_of(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


class Store(Generic[M]):
    """Entries read and not yet handed out, given back, or handed out and not settled.

    No await is in here: what happens between two awaits is atomic, and a `receive` that takes from
    here after its last await loses nothing when it is cancelled.
    """

    def __init__(self) -> None:
        self._fresh: deque[Held[M]] = deque()
        self._returned: list[tuple[tuple[int, int], Held[M]]] = []
        self._in_flight: dict[str, Held[M]] = {}
        self._lost: set[str] = set()
        self.rejected = 0
        self.redelivered = 0
        self.acknowledged = 0

    @property
    def depth(self) -> int:
        return len(self._fresh) + len(self._returned)

    @property
    def unsettled(self) -> int:
        return self.depth + len(self._in_flight)

    def ids(self) -> set[str]:
        return {held.tag for held in self._all()}

    def put(self, read: Sequence[Held[M]]) -> None:
        """Entries just read, newer than all before."""
        self._fresh.extend(read)

    def put_old(self, taken_over: Sequence[Held[M]]) -> None:
        """Entries that were handed out before, here or elsewhere: ahead of what is new."""
        for held in taken_over:
            heapq.heappush(self._returned, (held.order, held))

    def take(self, limit: int) -> list[Held[M]]:
        again = min(limit, len(self._returned))
        taken = [heapq.heappop(self._returned)[1] for _ in range(again)]
        self.redelivered += sum(held.attempt > 1 for held in taken)
        popleft = self._fresh.popleft
        taken += [popleft() for _ in range(min(limit - again, len(self._fresh)))]
        self._in_flight.update((held.tag, held) for held in taken)
        return taken

    def finish(self, done: Sequence[Held[M]]) -> None:
        for held in done:
            del self._in_flight[held.tag]
            self._lost.discard(held.tag)
        self.acknowledged += len(done)

    def give_back(self, undone: Sequence[Held[M]]) -> None:
        """Take entries back, each to its old place; what was lost meanwhile is another's now."""
        for held in undone:
            del self._in_flight[held.tag]
            if held.tag in self._lost:
                self._lost.remove(held.tag)
                continue
            again = Held(held.message, held.tag, held.attempt + 1, held.order, held.batch)
            heapq.heappush(self._returned, (held.order, again))

    def keep_only(self, still_held: Collection[str]) -> None:
        """Forget what is not this process's any more; what is being worked on is not given back."""
        self._fresh = deque(held for held in self._fresh if held.tag in still_held)
        self._returned = [pair for pair in self._returned if pair[1].tag in still_held]
        heapq.heapify(self._returned)
        self._lost = {tag for tag in self._in_flight if tag not in still_held}

    def clear(self) -> dict[str, int]:
        """Let go of what is not handed out: ids, and how often each was."""
        buffered = (*self._fresh, *(held for _, held in self._returned))
        self._fresh.clear()
        self._returned.clear()
        return {held.tag: held.attempt - 1 for held in buffered}

    def _all(self) -> Iterator[Held[M]]:
        yield from self._fresh
        yield from (held for _, held in self._returned)
        yield from self._in_flight.values()
