from pathlib import Path

from couponflow.kernel.audit import AuditScope, run_audit
from couponflow.kernel.database import Database
from couponflow.notify.audit import INVARIANTS
from tests.kernel.outboxes import message_id, publish_emails
from tests.notify.tellings import EMAIL, SMS, email_report, handle, run, sms_report

TWICE, UNTOLD, BEHIND = (invariant.name for invariant in INVARIANTS)


async def offenders(database: Database) -> dict[str, list[dict[str, str]]]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path()))
    return {finding.name: finding.offenders for finding in findings}


async def test_messages_that_were_told_once_are_no_offence(database: Database) -> None:
    await handle(database, EMAIL, 2)
    await publish_emails(database, 1)
    assert await offenders(database) == {TWICE: [], UNTOLD: [], BEHIND: []}


async def test_a_message_that_was_told_and_waits_is_found(database: Database) -> None:
    await handle(database, EMAIL)
    await publish_emails(database, 1)
    assert (await offenders(database))[TWICE] == [
        {"message_id": message_id(1), "also_in": "outbox"}
    ]


async def test_a_message_that_is_done_and_told_nobody_is_found(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "insert into processed_messages values (%s, 'sms', 'done'), (%s, 'sms', 'discarded'),"
            " (%s, 'clicks', 'done')",
            [message_id(1), message_id(2), message_id(3)],
        )
    assert (await offenders(database))[UNTOLD] == [{"message_id": message_id(1), "channel": "sms"}]


async def test_reports_are_done_without_telling_anybody(database: Database) -> None:
    await handle(database, SMS, 1)
    await handle(database, sms_report(), 2)
    await handle(database, sms_report(state="failed"), 3)
    assert await offenders(database) == {TWICE: [], UNTOLD: [], BEHIND: []}


async def test_a_notification_that_is_behind_its_reports_is_found(database: Database) -> None:
    await handle(database, EMAIL, 1)
    await handle(database, email_report(state="bounced"), 2)
    await run(database, b"update notifications set state = 'queued'")
    assert (await offenders(database))[BEHIND] == [
        {"notification_id": message_id(1), "state": "queued", "reported_state": "bounced"}
    ]
