import pytest

from couponflow.kernel.attempt import AttemptOver
from couponflow.kernel.database import Database
from couponflow.kernel.handlers import DONE
from couponflow.notify.mailbox import deliver_email, deliver_sms
from tests.kernel.outboxes import message_id, select
from tests.notify.tellings import EMAIL, FORGET_DONE, SMS, attempt, run

NOTIFIED = (
    "select id::text, channel, recipient, subject, body, body_html, provider, state,"
    " correlation_id from notifications order by channel"
)


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


async def test_nobody_is_told_twice_when_it_is_forgotten_that_the_message_was_done(
    database: Database,
) -> None:
    for _ in range(2):
        await run(database, FORGET_DONE)
        assert await deliver_sms(SMS, attempt(database, SMS)) == DONE
    assert await select(database, "select count(*) from notifications") == [(1,)]
