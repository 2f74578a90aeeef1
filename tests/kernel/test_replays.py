from collections.abc import Sequence

import msgspec
import pytest

from couponflow.kernel.replays import Outcome, Tally, walk


class LeftNumber(msgspec.Struct, frozen=True):
    id: str
    outcome: Outcome
    reason: str = ""


class Numbers:
    """The numbers up to one, dealt with in order."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.dealt_with: list[int] = []
        self.seen: list[int] = []

    async def deal_with(self, last: int | None, wanted: int) -> Sequence[int]:
        first = 0 if last is None else last + 1
        found = range(first, min(first + wanted, self.count))
        self.dealt_with += found
        return found

    async def any_after(self, last: int | None) -> bool:
        return (-1 if last is None else last) + 1 < self.count


@pytest.mark.parametrize(
    ("limit", "expected", "dealt_with", "more", "seen"),
    [
        (None, None, 7, False, [3, 6, 7]),
        (5, None, 5, True, [3, 5]),
        (9, 5, 5, True, [3, 5]),
        (6, 9, 6, True, [3, 6]),
        (7, None, 7, False, [3, 6, 7]),
        (8, 8, 7, False, [3, 6, 7]),
        (None, 0, 0, True, []),
    ],
)
async def test_a_walk_ends_at_the_least_bound_or_with_what_matches(
    limit: int | None, expected: int | None, dealt_with: int, more: bool, seen: list[int]
) -> None:
    numbers = Numbers(7)
    left = await walk(
        numbers.deal_with,
        numbers.any_after,
        batch=3,
        limit=limit,
        expected=expected,
        progress=numbers.seen.append,
    )
    assert numbers.dealt_with == list(range(dealt_with))
    assert (left, numbers.seen) == (more, seen)


def test_a_tally_counts_all_that_were_left_and_names_the_first_1_000() -> None:
    tally: Tally[LeftNumber] = Tally()
    refused = [LeftNumber(f"{number}", "refused") for number in range(600)]
    skipped = [LeftNumber(f"{number}", "skipped") for number in range(600)]
    tally.add(2, refused)
    tally.add(3, skipped)
    tally.add(0, skipped[:1])
    report = tally.report(more=False)
    assert (report.replayed, report.refused, report.skipped) == (5, 600, 601)
    assert report.left == [*refused, *skipped[:400]]
