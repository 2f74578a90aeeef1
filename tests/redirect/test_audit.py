from pathlib import Path
from uuid import uuid4

import msgspec

from couponflow.config import JournalSettings
from couponflow.kernel.audit import AuditScope, Finding, run_audit
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.journal import Journal, open_journal
from couponflow.redirect import set_aside
from couponflow.redirect.audit import INVARIANTS
from tests.samples import make_click

SETTINGS = JournalSettings(segment_bytes=65_536, max_bytes=16 * 65_536)


async def audited(database: Database, var: Path) -> Finding:
    (finding,) = await run_audit(INVARIANTS, AuditScope(database, var))
    return finding


def append(journal: Journal, *numbers: int) -> None:
    for number in numbers:
        journal.append(msgspec.json.encode(make_click(number)))


def hand_over(journal: Journal, count: int) -> None:
    batch = journal.read(count)
    assert batch is not None
    assert len(batch.payloads) == count
    journal.checkpoint(batch.end)


async def store(database: Database, number: int) -> None:
    click = make_click(number)
    async with database.connection() as connection:
        await connection.execute(
            "create table if not exists test_clicks partition of affiliate_clicks"
            " for values from ('2026-01-01') to ('2027-01-01')"
        )
        await connection.execute(
            "insert into affiliate_clicks values (%s, %s, %s, %s, to_timestamp(%s), null, '', '',"
            " 'human')",
            [click.click_id, click.merchant_id, click.offer_id, click.user_id, click.clicked_at],
        )


async def bury(database: Database, number: int, channel: str = "clicks") -> None:
    async with database.connection() as connection:
        await connection.execute(
            "insert into dead_letters values (%s, %s, %s, '{}', 'because', 1)",
            [uuid4(), channel, make_click(number).click_id],
        )


async def test_without_a_journal_there_is_nothing_to_lose(
    database: Database, tmp_path: Path
) -> None:
    finding = await audited(database, tmp_path)
    assert (finding.name, finding.ok) == ("journalled-clicks-are-kept", True)


async def test_clicks_that_still_wait_are_the_journals(database: Database, tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", SETTINGS, ManualClock()) as journal:
        append(journal, 1, 2)
        assert (await audited(database, tmp_path)).ok


async def test_clicks_stored_or_buried_are_kept(database: Database, tmp_path: Path) -> None:
    await store(database, 1)
    await bury(database, 2)
    with open_journal(tmp_path / "journal", SETTINGS, ManualClock()) as journal:
        append(journal, 1, 2, 3)
        hand_over(journal, 2)
        assert (await audited(database, tmp_path)).ok


async def test_a_click_that_was_let_go_and_is_nowhere_is_named(
    database: Database, tmp_path: Path
) -> None:
    await store(database, 1)
    await bury(database, 2, channel="emails")
    with open_journal(tmp_path / "journal", SETTINGS, ManualClock()) as journal:
        append(journal, 1, 2, 3, 4)
        hand_over(journal, 3)
        finding = await audited(database, tmp_path)
    lost = {row["click_id"] for row in finding.offenders}
    assert (finding.ok, lost) == (False, {make_click(2).click_id, make_click(3).click_id})


async def test_at_most_a_screenful_of_lost_clicks_is_named(
    database: Database, tmp_path: Path
) -> None:
    with open_journal(tmp_path / "journal", SETTINGS, ManualClock()) as journal:
        append(journal, *range(1, 51))
        hand_over(journal, 50)
        finding = await audited(database, tmp_path)
    assert (finding.ok, len(finding.offenders)) == (False, 20)


async def test_a_lost_click_is_named_however_many_before_it_are_in_the_stream(
    database: Database, tmp_path: Path
) -> None:
    async def streamed(_channel: str) -> list[bytes]:
        return [msgspec.json.encode(make_click(number)) for number in range(1, 50)]

    with open_journal(tmp_path / "journal", SETTINGS, ManualClock()) as journal:
        append(journal, *range(1, 51))
        hand_over(journal, 50)
        (finding,) = await run_audit(INVARIANTS, AuditScope(database, tmp_path, streamed))
    assert finding.offenders == [{"click_id": make_click(50).click_id}]


async def test_a_record_that_is_no_click_is_named_and_the_rest_is_still_looked_at(
    database: Database, tmp_path: Path
) -> None:
    with open_journal(tmp_path / "journal", SETTINGS, ManualClock()) as journal:
        append(journal, 1)
        journal.append(b"bad")
        append(journal, 2)
        journal.append(b"still waits")
        hand_over(journal, 3)
        await store(database, 1)
        finding = await audited(database, tmp_path)
    assert not finding.ok
    assert finding.offenders == [
        {
            "problem": "not a click",
            "position": "record 2 on disk",
            "set_aside": set_aside.file_name(b"bad"),
        },
        {"click_id": make_click(2).click_id},
    ]
