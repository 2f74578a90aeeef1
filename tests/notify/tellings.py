"""Emails, SMS and reports on them that the tests of notify start from."""

import msgspec

from couponflow.kernel.attempt import Attempt
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.handlers import Told
from couponflow.messages import (
    EmailDeliveryReported,
    EmailRequested,
    Message,
    SmsDeliveryReported,
    SmsRequested,
)
from couponflow.notify.delivery_reports import apply_report, apply_reports
from couponflow.notify.mailbox import deliver_email, deliver_sms
from tests.kernel.outboxes import envelope, message_id
from tests.samples import CLICKED_AT

EMAIL = EmailRequested(to="a@shop.example", subject="Hello", text="plain", html="<p>rich</p>")
SMS = SmsRequested(to="+919876543210", text="short")
FORGET_DONE = b"delete from processed_messages"


def email_report(**changes: str | float | None) -> EmailDeliveryReported:
    """What SendGrid says of message 1."""
    made = EmailDeliveryReported(
        provider="sendgrid", state="sent", notification_id=message_id(1), occurred_at=CLICKED_AT
    )
    return msgspec.structs.replace(made, **changes)


def sms_report(**changes: str | float | None) -> SmsDeliveryReported:
    """What MSG91 says of message 1."""
    made = SmsDeliveryReported(
        provider="msg91", state="sent", notification_id=message_id(1), occurred_at=CLICKED_AT
    )
    return msgspec.structs.replace(made, **changes)


def attempt(database: Database, message: Message, number: int = 1) -> Attempt:
    """An attempt at a message; `number` makes its id."""
    return Attempt(envelope(message, number=number), database)


async def handle(database: Database, message: Message, number: int = 1) -> None:
    """Make an attempt with the handler that is for the message."""
    made = attempt(database, message, number)
    match message:
        case EmailRequested():
            await deliver_email(message, made)
        case SmsRequested():
            await deliver_sms(message, made)
        case EmailDeliveryReported() | SmsDeliveryReported():
            await apply_report(message, made)
        case _:
            raise AssertionError(f"{message} is not for notify")


async def apply_together(
    connection: Connection, *batch: tuple[EmailDeliveryReported | SmsDeliveryReported, int]
) -> list[str]:
    """Apply reports at once, each with the number that makes its id; who had their effect."""
    told = [
        Told(
            message=report,
            message_id=message_id(number),
            correlation_id=f"story-{number}",
            published_at=CLICKED_AT,
        )
        for report, number in batch
    ]
    return list(await apply_reports(told, connection))


async def handle_together(
    database: Database, *batch: tuple[EmailDeliveryReported | SmsDeliveryReported, int]
) -> list[str]:
    async with database.transaction() as connection:
        return await apply_together(connection, *batch)


async def run(database: Database, statement: bytes) -> None:
    async with database.connection() as connection:
        await connection.execute(statement)
