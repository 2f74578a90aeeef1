"""Stripe: payment intents, checkout sessions and refunds.

An intent stands for a payment; its charges say nothing that it does not say. Newer versions of
Stripe leave the refunds out of `charge.refunded`: they come in `refund.created` as well.
"""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import msgspec

from couponflow.config_sources import StripeSettings
from couponflow.messages import Message, PaymentReported, PaymentState, RefundReported, RefundState
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.signatures import from_hex, hmac_matches, refused_by_age
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.reading import called, peek, read
from couponflow.webhooks.sources.values import clipped, moment_of, order_number_in, part_of

_SIGNATURE = "stripe-signature"
# Seconds of ten thousand years; more digits than that are nobody's clock.
_TIME_DIGITS_MAX = 12

_INTENT_EVENTS = frozenset(
    {
        "payment_intent.created",
        "payment_intent.requires_action",
        "payment_intent.processing",
        "payment_intent.partially_funded",
        "payment_intent.amount_capturable_updated",
        "payment_intent.succeeded",
        "payment_intent.payment_failed",
        "payment_intent.canceled",
    }
)
_SESSION_EVENTS = frozenset(
    {"checkout.session.completed", "checkout.session.async_payment_succeeded"}
)
_REFUND_EVENTS = frozenset({"refund.created", "refund.updated", "refund.failed"})

_INTENT_STATES: dict[str, PaymentState] = {
    "requires_capture": "authorized",
    "succeeded": "captured",
    "canceled": "failed",
}
"""Of the statuses that say it by themselves; a failed intent waits for another payment method."""

_REFUND_STATES: dict[str, RefundState] = {
    "pending": "pending",
    "requires_action": "pending",
    "succeeded": "processed",
    "failed": "failed",
    "canceled": "failed",
}

T = TypeVar("T")


class _Named(msgspec.Struct):
    id: str = ""
    type: str = ""


class _Envelope(msgspec.Struct):
    type: str
    object: str = "event"
    """Another for a thin event, which holds nothing."""


class _Data(msgspec.Struct, Generic[T]):
    object: T


class _Event(msgspec.Struct, Generic[T]):
    data: _Data[T]
    created: object = None


class _Intent(msgspec.Struct):
    id: str
    amount: int
    amount_received: int
    currency: str
    status: Literal[
        "requires_payment_method",
        "requires_confirmation",
        "requires_action",
        "processing",
        "requires_capture",
        "canceled",
        "succeeded",
    ]
    metadata: object = None
    last_payment_error: object = None
    cancellation_reason: object = None
    created: object = None


class _Session(msgspec.Struct):
    id: str
    payment_status: str
    payment_intent: str | None = None
    amount_total: int | None = None
    currency: str | None = None
    client_reference_id: object = None
    metadata: object = None
    created: object = None


class _Refund(msgspec.Struct):
    id: str
    amount: int
    currency: str
    status: Literal["pending", "requires_action", "succeeded", "failed", "canceled"] | None
    """Null where Stripe does not know it, or not yet."""
    payment_intent: str | None = None
    charge: str | None = None
    created: object = None


class _Refunds(msgspec.Struct):
    data: list[_Refund] = []


class _Charge(msgspec.Struct):
    refunds: _Refunds | None = None


_NAMED = msgspec.json.Decoder(_Named)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_INTENT_EVENT = msgspec.json.Decoder(_Event[_Intent])
_SESSION_EVENT = msgspec.json.Decoder(_Event[_Session])
_REFUND_EVENT = msgspec.json.Decoder(_Event[_Refund])
_CHARGE_EVENT = msgspec.json.Decoder(_Event[_Charge])


class StripeSource:
    """Verifies the HMAC of time and body; the time may be off on either side."""

    name = "stripe"
    methods = frozenset({"POST"})
    header_names = (_SIGNATURE,)
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, settings: StripeSettings) -> None:
        self._secrets = [
            secret.encode("utf-8", "surrogateescape")
            for secret in settings.webhook_secret
            if secret
        ]
        self._tolerance_seconds = settings.tolerance_seconds

    def verify(self, delivery: Delivery) -> Refused | None:
        times: list[str] = []
        signatures: list[bytes] = []
        for part in delivery.headers.get(_SIGNATURE, "").split(","):
            scheme, _, value = part.partition("=")
            if scheme == "t":
                times.append(value)
            elif scheme == "v1":
                signatures.append(from_hex(value) or b"")
        if len(times) != 1 or not _is_time(times[0]) or not any(signatures):
            return Refused("bad-signature", f"{_SIGNATURE} is missing or not one t with its v1")
        signed = b"%b.%b" % (times[0].encode(), delivery.body)
        if not hmac_matches(self._secrets, signed, signatures, "sha256"):
            return Refused("bad-signature", f"{_SIGNATURE} is of another time, body or secret")
        return refused_by_age(int(times[0]), delivery.received_at, self._tolerance_seconds)

    def identify(self, delivery: Delivery) -> Identity:
        named = peek(_NAMED, delivery.body)
        return Identity(called(named.type), called(named.id)) if named else Identity()

    def public_query(self, delivery: Delivery) -> str:
        # Not signed, so anybody may add one.
        return ""

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        envelope = read(_ENVELOPE, event.body)
        if envelope.object != "event":
            return ()
        return [Translated(checked(message)) for message in _messages(envelope.type, event)]


def _is_time(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _TIME_DIGITS_MAX


def _messages(event_type: str, event: StoredEvent) -> Sequence[Message]:
    if event_type in _INTENT_EVENTS:
        return _of_intent(event_type, read(_INTENT_EVENT, event.body), event.received_at)
    if event_type in _SESSION_EVENTS:
        return _of_session(read(_SESSION_EVENT, event.body), event.received_at)
    if event_type in _REFUND_EVENTS:
        told = read(_REFUND_EVENT, event.body)
        refund = told.data.object
        occurred_at = moment_of(told.created) or moment_of(refund.created) or event.received_at
        return [_refund_reported(refund, occurred_at)]
    if event_type == "charge.refunded":
        charged = read(_CHARGE_EVENT, event.body)
        occurred_at = moment_of(charged.created) or event.received_at
        refunds = charged.data.object.refunds or _Refunds()
        return [_refund_reported(refund, occurred_at) for refund in refunds.data]
    return ()


def _of_intent(event_type: str, event: _Event[_Intent], received_at: float) -> list[Message]:
    intent = event.data.object
    failed = event_type == "payment_intent.payment_failed"
    state = _INTENT_STATES.get(intent.status, "failed" if failed else "created")
    return [
        PaymentReported(
            provider="stripe",
            payment_id=intent.id,
            order_number=order_number_in(intent.metadata),
            state=state,
            amount_minor=intent.amount_received if state == "captured" else intent.amount,
            currency=intent.currency.upper(),
            reason=_why(intent) if state == "failed" else "",
            occurred_at=moment_of(event.created) or moment_of(intent.created) or received_at,
        )
    ]


def _why(intent: _Intent) -> str:
    """Why it failed; that it was called off outweighs what was tried before."""
    error = intent.last_payment_error
    reasons = (intent.cancellation_reason, part_of(error, "message"), part_of(error, "code"))
    return next(filter(None, map(clipped, reasons)), "")


def _of_session(event: _Event[_Session], received_at: float) -> list[Message]:
    """A session may be completed long before it is paid, and be paid without a payment."""
    session = event.data.object
    if session.payment_status != "paid" or not session.payment_intent:
        return []
    if session.amount_total is None or session.currency is None:
        raise EventUnreadable(
            "A paid session lacks `amount_total` or `currency` - at `$.data.object`"
        )
    return [
        PaymentReported(
            provider="stripe",
            payment_id=session.payment_intent,
            order_number=order_number_in(session.metadata, session.client_reference_id),
            provider_order_id=session.id,
            state="captured",
            amount_minor=session.amount_total,
            currency=session.currency.upper(),
            occurred_at=moment_of(event.created) or moment_of(session.created) or received_at,
        )
    ]


def _refund_reported(refund: _Refund, occurred_at: float) -> RefundReported:
    payment_id = refund.payment_intent or refund.charge
    if not payment_id:
        raise EventUnreadable(f"Refund {refund.id} names no `payment_intent` and no `charge`")
    return RefundReported(
        provider="stripe",
        refund_id=refund.id,
        payment_id=payment_id,
        state="pending" if refund.status is None else _REFUND_STATES[refund.status],
        amount_minor=refund.amount,
        currency=refund.currency.upper(),
        occurred_at=occurred_at,
    )
