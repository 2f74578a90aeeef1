"""The role `checkout`: consumes the channel `orders`, with a handler for each of its messages."""

from couponflow.checkout.orders import take_order
from couponflow.checkout.payments import take_payment, take_payments, take_refund
from couponflow.checkout.shipments import take_shipment
from couponflow.checkout.stock import take_stock
from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.handlers import Handler, HandlerPolicy
from couponflow.kernel.role import Role, Stage
from couponflow.messages import (
    CheckoutRequested,
    OrderCreated,
    PaymentReported,
    RefundReported,
    ShipmentReported,
    StockReported,
)


def checkout_handlers(policy: HandlerPolicy) -> tuple[Handler, ...]:
    """The handlers; the policy says how long a payment may wait for its order to become known."""
    return (
        Handler("checkout", CheckoutRequested, take_order, policy),
        Handler("order", OrderCreated, take_order, policy),
        Handler("payment", PaymentReported, take_payment, policy, take_payments),
        Handler("refund", RefundReported, take_refund, policy),
        Handler("shipment", ShipmentReported, take_shipment, policy),
        Handler("stock", StockReported, take_stock, policy),
    )


def checkout_role(parts: ConsumerParts) -> Role:
    return Role("checkout", Stage.WORK, ChannelConsumers(parts).run)
