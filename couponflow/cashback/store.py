"""Reports and what they say together, in PostgreSQL."""

from collections.abc import Sequence

import msgspec

from couponflow.kernel.database import load_queries
from couponflow.kernel.database_connection import Connection
from couponflow.kernel.handlers import Told
from couponflow.messages import PayoutReported, TransactionReported

_queries = load_queries("cashback")
# In this order: only who holds the rows sees all of their history.
_TRANSACTION_STEPS = ("lock_transactions", "insert_transaction_reports", "update_transactions")
_PAYOUT_STEPS = ("lock_payouts", "insert_payout_reports", "update_payouts")


async def keep_transaction_reports(
    connection: Connection, told: Sequence[Told[TransactionReported]]
) -> None:
    """Add to transactions' history in the caller's transaction; nothing new changes nothing."""
    await _keep(connection, _TRANSACTION_STEPS, told)


async def keep_payout_reports(connection: Connection, told: Sequence[Told[PayoutReported]]) -> None:
    """The same for payouts."""
    await _keep(connection, _PAYOUT_STEPS, told)


async def _keep(
    connection: Connection,
    steps: tuple[str, ...],
    told: Sequence[Told[TransactionReported]] | Sequence[Told[PayoutReported]],
) -> None:
    reports = [
        {
            **msgspec.structs.asdict(each.message),
            "message_id": each.message_id,
            "correlation_id": each.correlation_id,
            "place": place,
        }
        for place, each in enumerate(told)
    ]
    parameters = {"reports": msgspec.json.encode(reports).decode()}
    for step in steps:
        await connection.execute(_queries[step], parameters)
