"""Payments and refunds: each as far as anybody reported, and what that makes of the order.

Whoever changes them holds the lock on the order, so that its state follows from all of them.
"""

from collections.abc import Iterator, Sequence

from couponflow.checkout.orders import lock_order
from couponflow.checkout.store import (
    OrderNames,
    PaymentOfOrder,
    lock_orders,
    lock_payment,
    name_orders,
    put_payments,
    put_refund,
    refresh_orders,
    refresh_payments,
)
from couponflow.kernel.database import Connection
from couponflow.kernel.handlers import DONE, HandlerContext, MessageUnfit, Outcome, Told
from couponflow.messages import PaymentReported, RefundReported


async def take_payment(message: PaymentReported, context: HandlerContext) -> Outcome:
    """Apply what is reported of a payment; it waits for its order to become known."""
    name = f"payment {message.payment_id} of {message.provider}"
    async with context.transaction() as connection:
        order_id = await _order_of(connection, message, name)
        payment = PaymentOfOrder(context.message_id, order_id, message)
        if not await _apply(connection, [payment]):
            raise MessageUnfit(f"{name} is of another order", permanent=True)
    return DONE


async def take_payments(
    told: Sequence[Told[PaymentReported]], connection: Connection
) -> Sequence[str]:
    """Apply several reports; one that does not name exactly one known order is left out."""
    named = await lock_orders(connection, [_names_in(each.message) for each in told])
    found = [
        PaymentOfOrder(each.message_id, order_ids[0], each.message)
        for each, order_ids in zip(told, named, strict=True)
        if len(order_ids) == 1
    ]
    applied = await _apply(connection, _of_one_order(found))
    await name_orders(
        connection,
        (
            (each.report.provider, each.report.provider_order_id, each.order_id)
            for each in applied
            if each.report.provider_order_id is not None
        ),
    )
    return [each.new_id for each in applied]


def _of_one_order(found: Sequence[PaymentOfOrder]) -> list[PaymentOfOrder]:
    """Leave out what calls two orders by one name of a provider: it depends on who comes first."""
    orders: dict[tuple[str, str | None], set[str]] = {}
    for each in found:
        name = (each.report.provider, each.report.provider_order_id)
        orders.setdefault(name, set()).add(each.order_id)
    return [
        each
        for each in found
        if each.report.provider_order_id is None
        or len(orders[each.report.provider, each.report.provider_order_id]) == 1
    ]


async def _apply(
    connection: Connection, payments: Sequence[PaymentOfOrder]
) -> Sequence[PaymentOfOrder]:
    """Let payments of locked orders be as far as reported; those that are of these orders."""
    applied: list[PaymentOfOrder] = []
    row_ids: dict[tuple[str, str], str] = {}
    for each_once in _waves(payments):
        kept = await put_payments(connection, each_once)
        applied += [payment for payment in each_once if payment.key in kept]
        row_ids |= kept
    # Which refunds count may have changed with a payment's currency.
    await refresh_payments(connection, row_ids.values())
    await refresh_orders(connection, (payment.order_id for payment in applied))
    return applied


def _waves(payments: Sequence[PaymentOfOrder]) -> Iterator[list[PaymentOfOrder]]:
    """Reports in groups that have each payment once, those of one payment in their order."""
    left = list(payments)
    while left:
        wave: dict[tuple[str, str], PaymentOfOrder] = {}
        again = [each for each in left if wave.setdefault(each.key, each) is not each]
        yield list(wave.values())
        left = again


async def _order_of(connection: Connection, message: PaymentReported, payment: str) -> str:
    """The order a payment is for, locked."""
    if message.order_number is None and message.provider_order_id is None:
        # Stripe's intents say it only where we wrote it into them, but its checkout sessions know
        # both: once such an event has come, so does the payment.
        locked = await lock_payment(connection, message.provider, message.payment_id)
        if locked is None:
            raise MessageUnfit(
                f"{payment} names no order, and no other event has named one yet", permanent=False
            )
        return locked[1]
    return await lock_order(connection, _names_in(message))


def _names_in(message: PaymentReported) -> OrderNames:
    return OrderNames(
        number=message.order_number,
        provider=message.provider,
        provider_order_id=message.provider_order_id,
    )


async def take_refund(message: RefundReported, context: HandlerContext) -> Outcome:
    """Apply what is reported of a refund; it waits for its payment to become known."""
    async with context.transaction() as connection:
        locked = await lock_payment(connection, message.provider, message.payment_id)
        payment = f"payment {message.payment_id} of {message.provider}"
        if locked is None:
            raise MessageUnfit(f"{payment} is not known yet", permanent=False)
        payment_id, order_id = locked
        if not await put_refund(connection, context.message_id, payment_id, message):
            raise MessageUnfit(
                f"refund {message.refund_id} is of another payment than {payment}", permanent=True
            )
        await refresh_payments(connection, [payment_id])
        await refresh_orders(connection, [order_id])
    return DONE
