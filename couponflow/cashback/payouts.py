"""Money that we sent to somebody, as payment providers report it."""

from collections.abc import Sequence

from couponflow.cashback.store import keep_payout_reports
from couponflow.kernel.database import Connection
from couponflow.kernel.handlers import DONE, HandlerContext, Outcome, Told, as_told
from couponflow.messages import PayoutReported


async def record_payout(message: PayoutReported, context: HandlerContext) -> Outcome:
    """Keep a report, once, and move its payout forward if the report is further on."""
    async with context.transaction() as connection:
        await record_payouts([as_told(message, context)], connection)
    return DONE


async def record_payouts(
    told: Sequence[Told[PayoutReported]], connection: Connection
) -> Sequence[str]:
    """The same for several reports, of which some may be of one payout."""
    await keep_payout_reports(connection, told)
    return [each.message_id for each in told]
