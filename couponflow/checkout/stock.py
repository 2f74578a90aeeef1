"""How many pieces of a product there are."""

from couponflow.checkout.store import put_stock
from couponflow.kernel.handlers import DONE, HandlerContext, Outcome
from couponflow.messages import StockReported


async def take_stock(message: StockReported, context: HandlerContext) -> Outcome:
    """Keep a count, if it is the latest."""
    async with context.transaction() as connection:
        await put_stock(connection, message)
    return DONE
