"""Everything one role can say to another, and the channel it is said on.

A message is a frozen msgspec struct with a versioned tag, so that JSON written by an older
version still decodes and another program can write a well-formed message itself. Roles never
import each other; they meet here.
"""

from functools import cache, reduce
from operator import or_
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

Verdict = Literal["human", "bot", "prefetch", "duplicate"]
"""What couponflow thinks of a click. Every click is stored, whatever its verdict."""

# `\Z`, for `$` also matches before a line break at the end. A line break in a header begins
# another header, and PostgreSQL's text holds no NUL.
_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
_NO_NUL = r"^[^\x00]*\Z"
_ADDRESS = r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+\Z"
_E164 = r"^\+[1-9][0-9]{6,14}\Z"
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"

Uuid = Annotated[str, Meta(pattern=_UUID)]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=_ONE_LINE)]
"""What somebody else calls a thing: an id, a number, a code."""
Text = Annotated[str, Meta(max_length=2_000, pattern=_NO_NUL)]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
"""ISO 4217."""
AmountMinor = Annotated[int, Meta(ge=0, le=10**15)]
"""Money in the smallest unit of its currency."""
DecimalText = Annotated[str, Meta(pattern=r"^-?[0-9]{1,15}(\.[0-9]{1,6})?\Z")]
"""Money in major units, exactly as a network wrote it; rounded once, where it is credited."""
Moment = Annotated[float, Meta(ge=0, lt=253_370_764_800)]
"""Seconds since the epoch."""


class Message(msgspec.Struct, frozen=True, tag_field="type", gc=False):
    """One thing said by a role, on the channel its class names."""

    channel: ClassVar[str]


class Click(Message, tag="click.v1", frozen=True, gc=False):
    """A shopper followed a tracked link and was answered with a redirect.

    Ids are UUIDs in their canonical lower-case text. `click_id` is also the sub-id in the
    merchant's link and the correlation id of everything that follows from the click.
    `clicked_at` is in seconds since the epoch.
    """

    channel: ClassVar[str] = "clicks"

    click_id: str
    merchant_id: str
    offer_id: str
    user_id: str
    clicked_at: float
    ip: str
    user_agent: str
    referer: str
    verdict: Verdict


class EmailRequested(Message, tag="email.v1", frozen=True, gc=False):
    """Somebody is to be told something by email."""

    channel: ClassVar[str] = "emails"

    to: Annotated[str, Meta(min_length=3, max_length=320, pattern=_ADDRESS)]
    subject: Annotated[str, Meta(min_length=1, max_length=998, pattern=_ONE_LINE)]
    # Together less than the 1 MiB that a stream takes, however much of it is escaped in JSON.
    text: Annotated[str, Meta(max_length=60_000, pattern=_NO_NUL)]
    html: Annotated[str, Meta(max_length=100_000, pattern=_NO_NUL)] = ""


class SmsRequested(Message, tag="sms.v1", frozen=True, gc=False):
    """Somebody is to be told something by SMS; `to` is an E.164 number with its plus sign."""

    channel: ClassVar[str] = "sms"

    to: Annotated[str, Meta(pattern=_E164)]
    text: Annotated[str, Meta(min_length=1, max_length=1600, pattern=_NO_NUL)]


DeliveryState = Literal[
    "sent", "deferred", "delivered", "dropped", "failed", "bounced", "complained"
]
"""What became of a notification, each further on than the one before it."""


class EmailDeliveryReported(Message, tag="email_delivery.v1", frozen=True, kw_only=True, gc=False):
    """A provider says what became of an email.

    One of the two ids names the notification: ours, which travelled with the email, or the
    provider's own.
    """

    channel: ClassVar[str] = "emails"

    provider: Name
    state: DeliveryState
    notification_id: Uuid | None = None
    provider_message_id: Name | None = None
    reason: Text = ""
    occurred_at: Moment


class SmsDeliveryReported(Message, tag="sms_delivery.v1", frozen=True, kw_only=True, gc=False):
    """A provider says what became of an SMS; ids as in `EmailDeliveryReported`."""

    channel: ClassVar[str] = "sms"

    provider: Name
    state: DeliveryState
    notification_id: Uuid | None = None
    provider_message_id: Name | None = None
    reason: Text = ""
    occurred_at: Moment


class WebhookAccepted(Message, tag="webhook.v1", frozen=True, kw_only=True, gc=False):
    """A verified event is in `webhook_logs`; its id there is also the id of this message."""

    channel: ClassVar[str] = "webhooks"

    webhook_id: Uuid
    source: Name
    received_at: Moment
    """Finds the row's partition; to the microsecond what the row says."""


class AuditReported(Message, tag="audit.v1", frozen=True, kw_only=True, gc=False):
    """Another service did something that belongs into `audit_logs`."""

    channel: ClassVar[str] = "webhooks"

    actor: Name
    action: Name
    subject: Text
    details: dict[str, Text] = {}


class MetricReported(Message, tag="metric.v1", frozen=True, kw_only=True, gc=False):
    """Another service measured something."""

    channel: ClassVar[str] = "webhooks"

    name: Name
    value: float
    labels: dict[str, Text] = {}
    measured_at: Moment


class FailureReported(Message, tag="failure.v1", frozen=True, kw_only=True, gc=False):
    """Another service gave a message up: an operator of ours is to see it."""

    channel: ClassVar[str] = "webhooks"

    origin: Name
    """The channel, queue or event type it was on."""
    message_json: Annotated[str, Meta(max_length=500_000, pattern=_NO_NUL)]
    reason: Text


TransactionStatus = Literal[
    "pending", "held", "confirmed", "payable", "paid", "rejected", "unknown"
]


class TransactionReported(Message, tag="transaction.v1", frozen=True, kw_only=True, gc=False):
    """A network says what it thinks of a sale now; a hint, until its own report is read.

    `native_id` is the identity, within network and account. Amounts are None where the network
    did not say them, which is not the same as 0.
    """

    channel: ClassVar[str] = "cashback"

    network: Name
    account: Annotated[str, Meta(max_length=200, pattern=_ONE_LINE)] = ""
    native_id: Name
    click_ref: Name | None = None
    """The sub-id that was in the link: a click id, if it is one of ours."""
    status: TransactionStatus
    status_native: Text
    kind: Literal["sale", "lead", "bonus", "other"] = "sale"
    commission: DecimalText | None = None
    sale_amount: DecimalText | None = None
    currency: Currency | None = None
    program_id: Name | None = None
    order_id: Name | None = None
    clicked_at: Moment | None = None
    occurred_at: Moment | None = None
    reported_at: Moment


PayoutState = Literal[
    "pending",
    "queued",
    "scheduled",
    "processing",
    "rejected",
    "cancelled",
    "processed",
    "failed",
    "reversed",
]
"""Each may follow those before it; money that was `processed` may still be `reversed`."""


class PayoutReported(Message, tag="payout.v1", frozen=True, kw_only=True, gc=False):
    """A payment provider says what became of money we sent to somebody."""

    channel: ClassVar[str] = "cashback"

    provider: Name
    payout_id: Name
    state: PayoutState
    reference_id: Name | None = None
    amount_minor: AmountMinor
    currency: Currency
    utr: Name | None = None
    """The bank's own number of the transfer."""
    reason: Text = ""
    occurred_at: Moment


class OrderItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of an order."""

    sku: Name
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)]
    unit_price_minor: AmountMinor


class CheckoutRequested(Message, tag="checkout.v1", frozen=True, kw_only=True, gc=False):
    """Somebody wants to buy something."""

    channel: ClassVar[str] = "orders"

    number: Name
    """What the order is called, by the shop and in receipts."""
    user_id: Uuid | None = None
    amount_minor: AmountMinor
    currency: Currency
    items: tuple[OrderItem, ...] = ()
    requested_at: Moment


class OrderCreated(Message, tag="order.v1", frozen=True, kw_only=True, gc=False):
    """An order was made elsewhere; payments for it may come."""

    channel: ClassVar[str] = "orders"

    number: Name
    user_id: Uuid | None = None
    amount_minor: AmountMinor
    currency: Currency
    items: tuple[OrderItem, ...] = ()
    payment_provider: Name | None = None
    provider_order_id: Name | None = None
    """What the payment provider calls the order."""
    created_at: Moment


PaymentState = Literal["created", "failed", "authorized", "captured"]
"""How far a payment is. `failed` is not the end: the same payment may be captured after it."""


class PaymentReported(Message, tag="payment.v1", frozen=True, kw_only=True, gc=False):
    """A payment provider says how far a payment is; it may be late, doubled and out of order.

    The order is the one that has `order_number`, else the one that the provider calls
    `provider_order_id`.
    """

    channel: ClassVar[str] = "orders"

    provider: Name
    payment_id: Name
    order_number: Name | None = None
    provider_order_id: Name | None = None
    state: PaymentState
    amount_minor: AmountMinor
    currency: Currency
    method: Annotated[str, Meta(max_length=200, pattern=_ONE_LINE)] = ""
    reason: Text = ""
    """Why it failed."""
    occurred_at: Moment


RefundState = Literal["pending", "processed", "failed"]
"""Each may follow those before it: money sent back may bounce."""


class RefundReported(Message, tag="refund.v1", frozen=True, kw_only=True, gc=False):
    """A payment provider says how far a refund is."""

    channel: ClassVar[str] = "orders"

    provider: Name
    refund_id: Name
    payment_id: Name
    state: RefundState
    amount_minor: AmountMinor
    currency: Currency
    occurred_at: Moment


ShipmentState = Literal[
    "unknown",
    "pre_transit",
    "in_transit",
    "out_for_delivery",
    "available_for_pickup",
    "failure",
    "delivered",
    "return_to_sender",
    "returned",
    "cancelled",
]


class ShipmentReported(Message, tag="shipment.v1", frozen=True, kw_only=True, gc=False):
    """A carrier, or who speaks for it, says where a parcel is."""

    channel: ClassVar[str] = "orders"

    provider: Name
    tracking_code: Name
    carrier: Annotated[str, Meta(max_length=200, pattern=_ONE_LINE)] = ""
    order_number: Name | None = None
    state: ShipmentState
    state_native: Text
    detail: Text = ""
    occurred_at: Moment


class StockReported(Message, tag="stock.v1", frozen=True, kw_only=True, gc=False):
    """Another service says how many pieces of something there are."""

    channel: ClassVar[str] = "orders"

    sku: Name
    quantity: Annotated[int, Meta(ge=0, le=10**12)]
    reported_at: Moment


_MESSAGES: tuple[type[Message], ...] = (
    Click,
    EmailRequested,
    EmailDeliveryReported,
    SmsRequested,
    SmsDeliveryReported,
    WebhookAccepted,
    AuditReported,
    MetricReported,
    FailureReported,
    TransactionReported,
    PayoutReported,
    CheckoutRequested,
    OrderCreated,
    PaymentReported,
    RefundReported,
    ShipmentReported,
    StockReported,
)

MessageTypes = tuple[type[Message], ...]
"""What a channel carries; the first is meant where a program leaves `type` out."""

CHANNELS: dict[str, MessageTypes] = {
    channel: tuple(message for message in _MESSAGES if message.channel == channel)
    for channel in dict.fromkeys(message.channel for message in _MESSAGES)
}
"""The message types each channel carries."""


@cache
def message_decoder(types: MessageTypes) -> msgspec.json.Decoder[Message]:
    """Decodes JSON that is a message of one of the types, told apart by its tag."""
    return msgspec.json.Decoder(reduce(or_, types))
