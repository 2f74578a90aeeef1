"""From CSV records to staged rows: each is checked, and staged or written down as rejected."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import anyio.lowlevel

from couponflow.catalogue.csv_records import CsvRecord
from couponflow.catalogue.plans import Candidate, Plan
from couponflow.catalogue.rejects import RejectsWriter
from couponflow.kernel.database import Connection

R = TypeVar("R")


class Intake(Generic[R]):
    """Judges the records of one file, chunk by chunk, in their order."""

    def __init__(
        self,
        plan: Plan[R],
        select: Callable[[Sequence[str]], Sequence[str]],
        width: int,
        rejected: RejectsWriter,
    ) -> None:
        self._plan = plan
        self._select = select
        self._width = width
        self._rejected = rejected
        self._first_lines: tuple[dict[str, int], ...] = tuple({} for _ in plan.unique_columns)
        self.read = 0
        self.staged = 0

    async def take(self, connection: Connection, records: Sequence[CsvRecord]) -> None:
        """Stage the good records, write the others down."""
        candidates: list[Candidate[R]] = []
        bad: list[tuple[CsvRecord, str]] = []
        for record in records:
            if (damage := self._damage(record)) is not None:
                bad.append((record, damage))
            else:
                candidates.append(self._candidate(record))
        await self._plan.check(connection, candidates)
        good: list[R] = []
        for candidate in candidates:
            if self._accept(candidate):
                good.append(candidate.row)
            else:
                bad.append((candidate.record, "; ".join(candidate.problems)))
        for record, reason in sorted(bad, key=lambda item: item[0].line):
            self._rejected.write(record, reason)
        self.read += len(records)
        self.staged += len(good)
        if good:
            await self._plan.stage(connection, good)
        else:
            await anyio.lowlevel.checkpoint()

    def _damage(self, record: CsvRecord) -> str | None:
        """What keeps a record from being looked at column by column."""
        if record.broken:
            return record.problem
        if len(record.fields) == self._width:
            return None
        damage = f"line has {len(record.fields)} columns, the header {self._width}"
        return damage if record.problem is None else f"{record.problem}; {damage}"

    def _candidate(self, record: CsvRecord) -> Candidate[R]:
        problems = [] if record.problem is None else [record.problem]
        return Candidate(record, self._plan.parse(self._select(record.fields), problems), problems)

    def _accept(self, candidate: Candidate[R]) -> bool:
        """The first of several rows with the same key is taken, so that each line counts once."""
        values = self._plan.unique_values(candidate.row)
        for column, lines, value in zip(
            self._plan.unique_columns, self._first_lines, values, strict=True
        ):
            if value and (line := lines.get(value)) is not None:
                candidate.problems.append(f"same {column} as line {line}")
        if candidate.problems:
            return False
        for lines, value in zip(self._first_lines, values, strict=True):
            if value:
                lines[value] = candidate.record.line
        return True
