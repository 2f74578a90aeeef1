"""Where the parcels are."""

from couponflow.checkout.store import put_shipment
from couponflow.kernel.handlers import DONE, HandlerContext, Outcome
from couponflow.messages import ShipmentReported


async def take_shipment(message: ShipmentReported, context: HandlerContext) -> Outcome:
    """Keep what a carrier reports, whether or not the parcel's order is known."""
    async with context.transaction() as connection:
        await put_shipment(connection, context.message_id, message)
    return DONE
