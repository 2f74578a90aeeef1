from pathlib import Path

import psycopg
import pytest

from couponflow.kernel.audit import (
    AuditScope,
    Finding,
    Invariant,
    Row,
    query_invariant,
    run_audit,
)
from couponflow.kernel.database import Database


async def nothing(scope: AuditScope) -> list[Row]:
    return []


async def test_a_query_without_rows_holds(database: Database, tmp_path: Path) -> None:
    invariant = query_invariant("calm", "Nothing is wrong.", b"select 1 as one where false")
    findings = await run_audit([invariant], AuditScope(database, tmp_path))
    assert findings == [Finding("calm", "Nothing is wrong.", True, [])]


async def test_the_rows_of_a_query_are_the_offenders_as_text(
    database: Database, tmp_path: Path
) -> None:
    invariant = query_invariant(
        "loud",
        "Nothing is wrong.",
        b"select n as number, null as nothing from generate_series(1, 2) n",
    )
    (finding,) = await run_audit([invariant], AuditScope(database, tmp_path))
    assert not finding.ok
    assert finding.offenders == [
        {"number": "1", "nothing": "None"},
        {"number": "2", "nothing": "None"},
    ]


async def test_an_audit_may_take_longer_than_a_request(database: Database, tmp_path: Path) -> None:
    invariant = query_invariant(
        "patient", "It.", b"select current_setting('statement_timeout') as timeout"
    )
    (finding,) = await run_audit([invariant], AuditScope(database, tmp_path))
    assert finding.offenders == [{"timeout": "0"}]
    async with database.connection() as connection:
        cursor = await connection.execute("show statement_timeout")
        assert await cursor.fetchone() == ("30s",)


async def test_all_are_checked_in_order_and_told_one_by_one(
    database: Database, tmp_path: Path
) -> None:
    seen: list[Path] = []
    told: list[str] = []

    async def one(scope: AuditScope) -> list[Row]:
        seen.append(scope.var_path)
        return [{"a": "b"}]

    invariants = [
        Invariant("first", "It.", nothing),
        Invariant("second", "It.", one),
        Invariant("third", "It.", nothing),
    ]
    findings = await run_audit(
        invariants, AuditScope(database, tmp_path), lambda finding: told.append(finding.name)
    )
    assert [(finding.name, finding.ok) for finding in findings] == [
        ("first", True),
        ("second", False),
        ("third", True),
    ]
    assert told == ["first", "second", "third"]
    assert seen == [tmp_path]


async def test_a_query_that_would_change_something_is_refused(
    database: Database, tmp_path: Path
) -> None:
    change = query_invariant(
        "writing", "It.", b"insert into click_minutes values (now(), 'bot', 1) returning 1 as one"
    )
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await run_audit([change], AuditScope(database, tmp_path))
    async with database.connection() as connection:
        cursor = await connection.execute("select count(*) from click_minutes")
        assert await cursor.fetchone() == (0,)
