"""Razorpay and RazorpayX: payments, refunds, and payouts.

It signs the body and nothing else, neither a time nor the event's id, which is in a header: a
replay of old bytes under another id is another event, with no effect that has not been.
"""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import msgspec

from couponflow.config_sources import RazorpaySettings
from couponflow.messages import (
    PaymentReported,
    PaymentState,
    PayoutReported,
    PayoutState,
    RefundReported,
    RefundState,
)
from couponflow.webhooks.contract import Delivery, Identity, Refused, StoredEvent, Translated
from couponflow.webhooks.signatures import from_hex, hmac_matches
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.reading import called, peek, read
from couponflow.webhooks.sources.values import (
    clipped,
    moment_of,
    name_of,
    order_number_in,
    part_of,
)

_SIGNATURE = "x-razorpay-signature"
_EVENT_ID = "x-razorpay-event-id"

_PAYMENT_EVENTS = frozenset(
    {"payment.authorized", "payment.captured", "payment.failed", "order.paid"}
)
_REFUND_EVENTS = frozenset(
    {"refund.created", "refund.processed", "refund.failed", "refund.speed_changed"}
)
_PAYOUT_EVENTS = frozenset(
    {
        "payout.pending",
        "payout.rejected",
        "payout.queued",
        "payout.initiated",
        "payout.processed",
        "payout.updated",
        "payout.reversed",
        "payout.failed",
    }
)

_PAYMENT_STATES: dict[str, PaymentState] = {
    "created": "created",
    "authorized": "authorized",
    "captured": "captured",
    "refunded": "captured",
    "failed": "failed",
}

T = TypeVar("T")


class _Named(msgspec.Struct):
    event: str


class _Event(msgspec.Struct, Generic[T]):
    payload: T
    created_at: object = None


class _Held(msgspec.Struct, Generic[T]):
    entity: T


class _Payment(msgspec.Struct):
    id: str
    amount: int
    currency: str
    status: Literal["created", "authorized", "captured", "refunded", "failed"]
    """The event's name says less, and `captured: true` has been seen with `authorized`."""
    order_id: str | None = None
    method: object = None
    notes: object = None
    """An object; where it is empty, as other objects may be, `[]`."""
    error_description: object = None
    created_at: object = None


class _PaymentPayload(msgspec.Struct):
    payment: _Held[_Payment]
    order: object = None


class _Refund(msgspec.Struct):
    id: str
    payment_id: str
    amount: int
    currency: str
    status: RefundState
    """A `refund.created` may be processed already."""
    created_at: object = None


class _RefundPayload(msgspec.Struct):
    refund: _Held[_Refund]


class _Payout(msgspec.Struct):
    id: str
    amount: int
    currency: str
    status: PayoutState
    reference_id: str | None = None
    utr: str | None = None
    """Also the text `null`."""
    status_details: object = None
    created_at: object = None


class _PayoutPayload(msgspec.Struct):
    payout: _Held[_Payout]


_NAMED = msgspec.json.Decoder(_Named)
_PAYMENT_EVENT = msgspec.json.Decoder(_Event[_PaymentPayload])
_REFUND_EVENT = msgspec.json.Decoder(_Event[_RefundPayload])
_PAYOUT_EVENT = msgspec.json.Decoder(_Event[_PayoutPayload])


class RazorpaySource:
    """Verifies the HMAC of the body; translates a snapshot by its own status."""

    name = "razorpay"
    methods = frozenset({"POST"})
    header_names = (_SIGNATURE, _EVENT_ID)
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, settings: RazorpaySettings) -> None:
        self._secrets = [
            secret.encode("utf-8", "surrogateescape")
            for secret in settings.webhook_secret
            if secret
        ]

    def verify(self, delivery: Delivery) -> Refused | None:
        signature = from_hex(delivery.headers.get(_SIGNATURE, ""))
        if not signature:
            return Refused("bad-signature", f"{_SIGNATURE} is missing or not one in hex")
        if not hmac_matches(self._secrets, delivery.body, (signature,), "sha256"):
            return Refused("bad-signature", f"{_SIGNATURE} is of another body or secret")
        return None

    def identify(self, delivery: Delivery) -> Identity:
        named = peek(_NAMED, delivery.body)
        return Identity(
            called(named.event) if named else "", called(delivery.headers.get(_EVENT_ID, ""))
        )

    def public_query(self, delivery: Delivery) -> str:
        # Not signed, so anybody may add one.
        return ""

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        name = read(_NAMED, event.body).event
        if name in _PAYMENT_EVENTS:
            message = _payment_reported(read(_PAYMENT_EVENT, event.body), event.received_at)
        elif name in _REFUND_EVENTS:
            message = _refund_reported(read(_REFUND_EVENT, event.body), event.received_at)
        elif name in _PAYOUT_EVENTS:
            message = _payout_reported(read(_PAYOUT_EVENT, event.body), event.received_at)
        else:
            return ()
        return (Translated(checked(message)),)


def _payment_reported(event: _Event[_PaymentPayload], received_at: float) -> PaymentReported:
    payment = event.payload.payment.entity
    receipt = part_of(part_of(event.payload.order, "entity"), "receipt")
    return PaymentReported(
        provider="razorpay",
        payment_id=payment.id,
        order_number=order_number_in(payment.notes, receipt),
        provider_order_id=payment.order_id or None,
        state=_PAYMENT_STATES[payment.status],
        amount_minor=payment.amount,
        currency=payment.currency,
        method=name_of(payment.method) or "",
        reason=clipped(payment.error_description),
        occurred_at=moment_of(event.created_at) or moment_of(payment.created_at) or received_at,
    )


def _refund_reported(event: _Event[_RefundPayload], received_at: float) -> RefundReported:
    refund = event.payload.refund.entity
    return RefundReported(
        provider="razorpay",
        refund_id=refund.id,
        payment_id=refund.payment_id,
        state=refund.status,
        amount_minor=refund.amount,
        currency=refund.currency,
        occurred_at=moment_of(event.created_at) or moment_of(refund.created_at) or received_at,
    )


def _payout_reported(event: _Event[_PayoutPayload], received_at: float) -> PayoutReported:
    payout = event.payload.payout.entity
    details = payout.status_details
    return PayoutReported(
        provider="razorpay",
        payout_id=payout.id,
        state=payout.status,
        reference_id=payout.reference_id or None,
        amount_minor=payout.amount,
        currency=payout.currency,
        utr=None if payout.utr in (None, "", "null") else payout.utr,
        reason=clipped(part_of(details, "reason")) or clipped(part_of(details, "description")),
        occurred_at=moment_of(event.created_at) or moment_of(payout.created_at) or received_at,
    )
