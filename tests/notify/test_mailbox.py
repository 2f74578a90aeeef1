from pathlib import Path

import pytest

from couponflow.kernel.attempt import Attempt, AttemptOver
from couponflow.kernel.audit import AuditScope, run_audit
from couponflow.kernel.database import Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import DONE
from couponflow.messages import EmailRequested, Message, SmsRequested
from couponflow.notify.audit import INVARIANTS
from couponflow.notify.mailbox import deliver_email, deliver_sms
from tests.kernel.outboxes import envelope, message_id, publish_emails, select

EMAIL = EmailRequested(to="a@shop.example", subject="Hello", text="plain", html="<p>rich</p>")
SMS = SmsRequested(to="+919876543210", text="short")
TWICE, UNTOLD = (invariant.name for invariant in INVARIANTS)
NOTIFIED = (
    "select id::text, channel, recipient, subject, body, body_html, provider, state,"
    " correlation_id from notifications order by channel"
)


def attempt(database: Database, message: Message, number: int = 1) -> Attempt:
    made: Envelope = envelope(message, number=number)
    return Attempt(made, database)


async def test_an_email_lands_in_the_mailbox_and_is_done(database: Database) -> None:
    assert await deliver_email(EMAIL, attempt(database, EMAIL)) == DONE
    assert await deliver_sms(SMS, attempt(database, SMS, 2)) == DONE
    kept = ("mailbox", "delivered")
    assert await select(database, NOTIFIED) == [
        (message_id(1), "emails", EMAIL.to, "Hello", "plain", "<p>rich</p>", *kept, "story-1"),
        (message_id(2), "sms", SMS.to, "", "short", "", *kept, "story-2"),
    ]
    assert await select(
        database, "select message_id::text, channel from processed_messages order by 1"
    ) == [(message_id(1), "emails"), (message_id(2), "sms")]


async def test_nobody_is_told_twice(database: Database) -> None:
    await deliver_email(EMAIL, attempt(database, EMAIL))
    with pytest.raises(AttemptOver):
        await deliver_email(EMAIL, attempt(database, EMAIL))
    assert await select(database, "select count(*) from notifications") == [(1,)]


async def deliver(database: Database, message: Message) -> None:
    match message:
        case EmailRequested():
            await deliver_email(message, attempt(database, message))
        case SmsRequested():
            await deliver_sms(message, attempt(database, message))


async def offenders(database: Database) -> dict[str, list[dict[str, str]]]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path()))
    return {finding.name: finding.offenders for finding in findings}


async def test_messages_that_were_told_once_are_no_offence(database: Database) -> None:
    await deliver_email(EMAIL, attempt(database, EMAIL, 2))
    await publish_emails(database, 1)
    assert await offenders(database) == {TWICE: [], UNTOLD: []}


async def test_a_message_that_was_told_and_waits_is_found(database: Database) -> None:
    await deliver_email(EMAIL, attempt(database, EMAIL))
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
