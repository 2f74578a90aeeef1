"""What people were told and what became of it, in PostgreSQL."""

from collections.abc import Sequence
from typing import get_args

import msgspec

from couponflow.kernel.database import load_queries
from couponflow.kernel.database_connection import Connection
from couponflow.messages import DeliveryState, EmailDeliveryReported, SmsDeliveryReported

STATES: tuple[str, ...] = ("queued", *get_args(DeliveryState))
"""What a notification may be, each further on than the one before it."""

DeliveryReport = EmailDeliveryReported | SmsDeliveryReported

_queries = load_queries("notify")


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """One thing told to one person."""

    id: str
    channel: str
    recipient: str
    subject: str = ""
    body: str
    body_html: str = ""
    provider: str
    correlation_id: str


async def insert_notification(connection: Connection, notification: Notification) -> None:
    """Keep it in the caller's transaction, unless it was kept before."""
    await connection.execute(_queries["insert_notification"], msgspec.structs.asdict(notification))


async def lock_notifications(
    connection: Connection, reports: Sequence[DeliveryReport]
) -> list[str | None]:
    """For each report the id of the notification it is about, locked until the caller's commit."""
    cursor = await connection.execute(
        _queries["lock_notifications"],
        {
            "channels": [report.channel for report in reports],
            "notification_ids": [report.notification_id for report in reports],
            "providers": [report.provider for report in reports],
            "provider_message_ids": [report.provider_message_id for report in reports],
        },
    )
    found: list[str | None] = [None] * len(reports)
    for place, notification_id in await cursor.fetchall():
        found[place - 1] = notification_id
    return found


class ReportOfNotification(msgspec.Struct, frozen=True):
    """A report, and the locked notification it is about."""

    message_id: str
    notification_id: str
    report: DeliveryReport


async def keep_reports(connection: Connection, found: Sequence[ReportOfNotification]) -> None:
    """Add to the history of notifications, and move them forward."""
    reports = [
        {
            **msgspec.structs.asdict(each.report),
            "message_id": each.message_id,
            "notification_id": each.notification_id,
        }
        for each in found
    ]
    await connection.execute(
        _queries["insert_reports"], {"reports": msgspec.json.encode(reports).decode()}
    )
    await connection.execute(
        _queries["move_notifications"],
        {
            "notification_ids": sorted({each.notification_id for each in found}),
            "states": list(STATES),
        },
    )
