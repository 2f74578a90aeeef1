"""What providers say became of an email or an SMS: notifications move forward by it, never back."""

from collections.abc import Sequence
from typing import TypeVar

from couponflow.kernel.database import Connection
from couponflow.kernel.handlers import DONE, HandlerContext, MessageUnfit, Outcome, Told, as_told
from couponflow.notify.store import (
    DeliveryReport,
    ReportOfNotification,
    keep_reports,
    lock_notifications,
)

R = TypeVar("R", bound=DeliveryReport)


async def apply_report(message: DeliveryReport, context: HandlerContext) -> Outcome:
    """Keep a report, once, and let its notification be as far as the furthest of its reports.

    A report may overtake the notification it is about, so that one which is not known is waited
    for: raises `MessageUnfit`.
    """
    async with context.transaction() as connection:
        if not await apply_reports([as_told(message, context)], connection):
            called = message.notification_id or message.provider_message_id or "without an id"
            raise MessageUnfit(
                f"notification {called} of {message.provider} is not known yet", permanent=False
            )
    return DONE


async def apply_reports(told: Sequence[Told[R]], connection: Connection) -> Sequence[str]:
    """The same for several reports; one on what is not known yet is left out."""
    notification_ids = await lock_notifications(connection, [each.message for each in told])
    found = [
        ReportOfNotification(each.message_id, notification_id, each.message)
        for each, notification_id in zip(told, notification_ids, strict=True)
        if notification_id is not None
    ]
    await keep_reports(connection, found)
    return [each.message_id for each in found]
