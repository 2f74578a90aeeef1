"""Orders: what is told of them, and how whatever concerns one finds it.

An order is told of twice, by who asked for it and by who made it, in any order. One message stands
as a whole (the query `put_order` says which), lines included, whatever came between the two.
"""

from couponflow.checkout.store import (
    OrderNames,
    lock_orders,
    name_orders,
    put_order,
    refresh_orders,
    replace_items,
)
from couponflow.kernel.database_connection import Connection
from couponflow.kernel.handlers import DONE, HandlerContext, MessageUnfit, Outcome
from couponflow.messages import CheckoutRequested, OrderCreated


async def take_order(message: CheckoutRequested | OrderCreated, context: HandlerContext) -> Outcome:
    """Make an order that is not known yet, or correct one that was told of less well."""
    names = OrderNames(number=message.number)
    if isinstance(message, OrderCreated):
        names = OrderNames(
            number=message.number,
            provider=message.payment_provider,
            provider_order_id=message.provider_order_id,
        )
    async with context.transaction() as connection:
        stands = await put_order(connection, context.message_id, message)
        order_id = await lock_order(connection, names)
        if stands:
            await replace_items(connection, order_id, message.items)
            await refresh_orders(connection, [order_id])
    return DONE


async def lock_order(connection: Connection, names: OrderNames) -> str:
    """Find the order, keep it from other writers, and remember what the provider calls it.

    Raises `MessageUnfit`: one to try again where the order is not known yet, a permanent one where
    the names are of two orders.
    """
    (order_ids,) = await lock_orders(connection, [names])
    theirs = f"{names.provider}'s {names.provider_order_id}"
    match order_ids:
        case []:
            raise MessageUnfit(f"order {names.number or theirs} is not known yet", permanent=False)
        case [order_id]:
            if names.provider is not None and names.provider_order_id is not None:
                name = (names.provider, names.provider_order_id, order_id)
                await name_orders(connection, [name])
            return order_id
        case _:
            raise MessageUnfit(f"order {names.number} and {theirs} are two orders", permanent=True)
