"""Named invariants over everything that is stored, checked from outside the code that keeps them.

Each capability folder declares its own in `audit.py`; `couponflow audit` runs them all, and so
does the last line of every system test.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from couponflow.kernel.database import Database

Row = dict[str, str]


async def _nothing(channel: str) -> list[bytes]:
    """What streams hold where there is no Redis."""
    return []


@dataclass(frozen=True, slots=True)
class AuditScope:
    """What an audit may look at; it changes nothing."""

    database: Database
    var_path: Path
    streamed: Callable[[str], Awaitable[list[bytes]]] = _nothing
    """The messages, as JSON, that the stream of a channel holds."""
    done_days: int = 7
    """How long it is remembered that a message is done."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that is always true, and how to look for exceptions."""

    name: str
    proves: str
    """One sentence for the operator: what holds when this passes."""
    offenders: Callable[[AuditScope], Awaitable[list[Row]]]
    """The rows that break it; at most a screenful."""


class Finding(msgspec.Struct, frozen=True):
    """What one invariant's check found."""

    name: str
    proves: str
    ok: bool
    offenders: list[Row]


def query_invariant(
    name: str,
    proves: str,
    query: bytes,
    parameters: Callable[[AuditScope], Mapping[str, object]] | None = None,
) -> Invariant:
    """An invariant whose exceptions are the rows of a query."""

    async def offenders(scope: AuditScope) -> list[Row]:
        async with scope.database.transaction() as connection:
            await connection.execute("set transaction read only")
            # An audit reads whole tables; the limit is for requests.
            await connection.execute("set local statement_timeout = 0")
            cursor = await connection.execute(query, parameters(scope) if parameters else None)
            columns = [column.name for column in cursor.description or ()]
            return [
                dict(zip(columns, (str(value) for value in row), strict=True))
                async for row in cursor
            ]

    return Invariant(name, proves, offenders)


async def run_audit(
    invariants: Sequence[Invariant],
    scope: AuditScope,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Check the invariants one after the other."""
    findings = []
    for invariant in invariants:
        offenders = await invariant.offenders(scope)
        finding = Finding(invariant.name, invariant.proves, not offenders, offenders)
        on_finding(finding)
        findings.append(finding)
    return findings
