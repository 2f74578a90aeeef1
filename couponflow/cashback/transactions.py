"""Sales, leads and bonuses as affiliate networks report them."""

from collections.abc import Sequence

from couponflow.cashback.store import keep_transaction_reports
from couponflow.kernel.database import Connection
from couponflow.kernel.handlers import DONE, HandlerContext, Outcome, Told, as_told
from couponflow.messages import TransactionReported


async def record_transaction(message: TransactionReported, context: HandlerContext) -> Outcome:
    """Keep a report, once, and let its transaction say what all of its reports say.

    A report is a hint: whoever moves money asks the network first.
    """
    async with context.transaction() as connection:
        await record_transactions([as_told(message, context)], connection)
    return DONE


async def record_transactions(
    told: Sequence[Told[TransactionReported]], connection: Connection
) -> Sequence[str]:
    """The same for several reports, of which some may be of one transaction."""
    await keep_transaction_reports(connection, told)
    return [each.message_id for each in told]
