"""What people were told, in PostgreSQL."""

import msgspec

from couponflow.kernel.database import load_queries
from couponflow.kernel.database_connection import Connection

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
    """Keep it in the caller's transaction."""
    await connection.execute(_queries["insert_notification"], msgspec.structs.asdict(notification))
