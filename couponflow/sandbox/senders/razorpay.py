"""Razorpay: what it tells of a payment and of its refund; and RazorpayX, of a payout."""

import random
from typing import Literal

import msgspec

from couponflow.sandbox.senders.events import Event, Thing, Told
from couponflow.sandbox.senders.made_up import (
    Course,
    Person,
    ShopOrder,
    digits,
    hex_id,
    person,
    token,
)

_ACCOUNT_ID = "acc_CouponflowDemo"
_Status = Literal["authorized", "captured", "refunded", "failed"]
_PAYOUT_STATUSES = {"initiated": "processing"}
"""Of the events that are not called as the status."""
_Ending = Literal["paid", "failed_then_paid", "failed", "authorized", "refunded", "refund_failed"]
_ENDINGS: dict[_Ending, int] = {
    "paid": 45,
    "failed_then_paid": 20,
    "failed": 10,
    "authorized": 5,
    "refunded": 15,
    "refund_failed": 5,
}


def order_id(randomness: random.Random) -> str:
    return f"order_{token(randomness, 14)}"


def payment_events(
    order: ShopOrder, provider_order_id: str, randomness: random.Random
) -> list[Event]:
    """One payment's life within about an hour, in the order in which it happened."""
    course = Course(order.created_at, randomness)
    payment = _Payment(order, provider_order_id, course.later(5, 90), randomness)
    ending = randomness.choices(list(_ENDINGS), list(_ENDINGS.values()))[0]
    events = []
    if ending in ("failed", "failed_then_paid"):
        events.append(payment.tell("failed", course.later(5, 300)))
    if ending == "failed":
        return events
    events.append(payment.tell("authorized", course.later(2, 900)))
    if ending == "authorized":
        return events
    events.append(payment.tell("captured", course.later(1, 10)))
    events.append(payment.tell_order_paid(course.at))
    if ending in ("refunded", "refund_failed"):
        events += payment.refund(course, succeeds=ending == "refunded")
    return events


def payout_events(began: int, randomness: random.Random) -> list[Event]:
    """One payout's life; money that has arrived may still come back."""
    course = Course(began, randomness)
    payout = _Payout(began, randomness)
    statuses = randomness.choice(
        (
            ("queued", "initiated", "processed"),
            ("pending", "initiated", "processed"),
            ("initiated", "processed"),
            ("initiated", "processed", "reversed"),
            ("initiated", "failed"),
            ("pending", "rejected"),
        )
    )
    return [payout.tell(name, course.later(20, 1_800)) for name in statuses]


class _Payment:
    """A payment as its snapshots show it."""

    def __init__(
        self, order: ShopOrder, provider_order_id: str, created_at: int, randomness: random.Random
    ) -> None:
        self._order = order
        self._provider_order_id = provider_order_id
        self._randomness = randomness
        self._created_at = created_at
        self._id = f"pay_{token(randomness, 14)}"
        self._method = _method(order.buyer, randomness)
        self._thing = Thing("payment", self._id, "razorpay")
        self._order_thing = Thing("order", order.number)

    def tell(self, status: _Status, at: int) -> Event:
        payload = {"payment": self._entity(status)}
        order_state = "paid" if status == "captured" else "attempted"
        told = [Told(self._thing, status, at), Told(self._order_thing, order_state, at)]
        return self._event(f"payment.{status}", payload, at, told)

    def tell_order_paid(self, at: int) -> Event:
        """It comes for the same money as `payment.captured`."""
        payload = {"payment": self._entity("captured"), "order": self._paid_order()}
        told = [Told(self._thing, "captured", at), Told(self._order_thing, "paid", at)]
        return self._event("order.paid", payload, at, told)

    def refund(self, course: Course, *, succeeds: bool) -> list[Event]:
        """All of it, or half."""
        whole = self._order.amount_minor
        amount = self._randomness.choice((whole, whole // 2))
        refund_id = f"rfnd_{token(self._randomness, 14)}"
        created_at = course.later(60, 1_200)
        thing = Thing("refund", refund_id, "razorpay")
        last = ("refund.processed", "processed") if succeeds else ("refund.failed", "failed")
        events = []
        for name, status in (("refund.created", "pending"), last):
            refunded = 0 if status == "failed" else amount
            payload = {
                "refund": self._refund_entity(refund_id, amount, status, created_at),
                "payment": self._entity("refunded" if refunded == whole else "captured", refunded),
            }
            told = [Told(thing, status, course.at)]
            if status == "processed":
                order_state = "refunded" if amount == whole else "partially_refunded"
                told.append(Told(self._order_thing, order_state, course.at))
            events.append(self._event(name, payload, course.at, told))
            course.later(60, 900)
        return events

    def _entity(self, status: _Status, refunded: int = 0) -> dict[str, object]:
        amount, buyer = self._order.amount_minor, self._order.buyer
        taken = status in ("captured", "refunded")
        fee = amount * 236 // 10_000
        failed = status == "failed"
        return {
            "id": self._id,
            "entity": "payment",
            "amount": amount,
            "base_amount": amount,
            "currency": self._order.currency,
            "status": status,
            "order_id": self._provider_order_id,
            "invoice_id": None,
            "international": False,
            "amount_refunded": refunded,
            "amount_transferred": 0,
            "refund_status": None if not refunded else "full" if refunded == amount else "partial",
            "captured": taken,
            "description": "Gift card",
            **self._method,
            "email": buyer.email,
            "contact": buyer.phone,
            "notes": [],
            "fee": fee if taken else None,
            "tax": fee * 18 // 118 if taken else None,
            "error_code": "BAD_REQUEST_ERROR" if failed else None,
            "error_description": "Payment was not completed in time" if failed else None,
            "error_source": "customer" if failed else None,
            "error_step": "payment_authentication" if failed else None,
            "error_reason": "payment_timed_out" if failed else None,
            "created_at": self._created_at,
        }

    def _refund_entity(
        self, refund_id: str, amount: int, status: str, created_at: int
    ) -> dict[str, object]:
        return {
            "id": refund_id,
            "entity": "refund",
            "amount": amount,
            "currency": self._order.currency,
            "payment_id": self._id,
            "notes": [],
            "receipt": None,
            "acquirer_data": {"arn": None},
            "created_at": created_at,
            "batch_id": None,
            "status": status,
            "speed_requested": "normal",
            "speed_processed": "normal",
        }

    def _paid_order(self) -> dict[str, object]:
        amount = self._order.amount_minor
        return {
            "id": self._provider_order_id,
            "entity": "order",
            "amount": amount,
            "amount_paid": amount,
            "amount_due": 0,
            "currency": self._order.currency,
            "receipt": self._order.number,
            "offer_id": None,
            "status": "paid",
            "attempts": 1,
            "notes": [],
            "created_at": self._order.created_at,
        }

    def _event(
        self, name: str, payload: dict[str, dict[str, object]], at: int, told: list[Told]
    ) -> Event:
        return _event(name, payload, at, told, token(self._randomness, 14))


class _Payout:
    """A payout as its snapshots show it."""

    def __init__(self, created_at: int, randomness: random.Random) -> None:
        self._randomness = randomness
        self._created_at = created_at
        self._id = f"pout_{token(randomness, 14)}"
        self._fund_account_id = f"fa_{token(randomness, 14)}"
        self._amount = randomness.randrange(25_000, 500_000, 100)
        self._utr = digits(randomness, 12)
        self._reference_id = f"cb-{hex_id(randomness, 16)}"
        self._payee = person(randomness)

    def tell(self, name: str, at: int) -> Event:
        status = _PAYOUT_STATUSES.get(name, name)
        sent = status in ("processed", "reversed")
        entity: dict[str, object] = {
            "id": self._id,
            "entity": "payout",
            "fund_account_id": self._fund_account_id,
            "amount": self._amount,
            "currency": "INR",
            "notes": [],
            "fees": 236 if sent else 0,
            "tax": 36 if sent else 0,
            "status": status,
            "purpose": "cashback",
            # Both are seen where there is none.
            "utr": self._utr if sent else self._randomness.choice((None, "null")),
            "mode": "UPI",
            "reference_id": self._reference_id,
            "narration": "Cashback",
            "batch_id": None,
            "status_details": _STATUS_DETAILS.get(status),
            "created_at": self._created_at,
        }
        told = [Told(Thing("payout", self._id, "razorpay"), status, at)]
        event_id = token(self._randomness, 14)
        return _event(f"payout.{name}", {"payout": entity}, at, told, event_id)


_STATUS_DETAILS = {
    "queued": {
        "reason": "low_balance",
        "description": "Waits for a balance that suffices",
        "source": "business",
    },
    "processing": {
        "reason": "payout_bank_processing",
        "description": "The bank is working on it",
        "source": "beneficiary_bank",
    },
    "processed": {
        "reason": "payout_processed",
        "description": "Credited",
        "source": "beneficiary_bank",
    },
    "reversed": {
        "reason": "beneficiary_bank_failure",
        "description": "The bank sent it back",
        "source": "beneficiary_bank",
    },
    "failed": {
        "reason": "beneficiary_vpa_invalid",
        "description": "There is no such UPI address",
        "source": "beneficiary_bank",
    },
}


def _method(buyer: Person, randomness: random.Random) -> dict[str, object]:
    """How it is paid, with the fields that only this way has."""
    nothing: dict[str, object] = {"card_id": None, "bank": None, "wallet": None, "vpa": None}
    match randomness.choice(("upi", "upi", "card", "netbanking")):
        case "card":
            card = {
                "id": f"card_{token(randomness, 14)}",
                "entity": "card",
                "name": buyer.name,
                "last4": digits(randomness, 4),
                "network": "RuPay",
                "type": "debit",
                "issuer": "SBIN",
                "international": False,
                "emi": False,
                "sub_type": "consumer",
            }
            specific = {
                "method": "card",
                "card_id": card["id"],
                "card": card,
                "token_id": f"token_{token(randomness, 14)}",
                "acquirer_data": {"auth_code": digits(randomness, 6)},
            }
        case "netbanking":
            specific = {
                "method": "netbanking",
                "bank": "HDFC",
                "acquirer_data": {"bank_transaction_id": digits(randomness, 8)},
            }
        case _:
            specific = {
                "method": "upi",
                "vpa": buyer.vpa,
                "acquirer_data": {"rrn": digits(randomness, 12)},
                "upi": {
                    "payer_account_type": "bank_account",
                    "vpa": buyer.vpa,
                    "flow": "intent",
                },
            }
    return {**nothing, **specific}


def _event(
    name: str,
    payload: dict[str, dict[str, object]],
    at: int,
    told: list[Told],
    event_id: str,
) -> Event:
    body = {
        "entity": "event",
        "account_id": _ACCOUNT_ID,
        "event": name,
        "contains": list(payload),
        "payload": {held: {"entity": entity} for held, entity in payload.items()},
        "created_at": at,
    }
    return Event(
        source="razorpay",
        event_id=event_id,
        event_type=name,
        body=msgspec.json.encode(body),
        told=tuple(told),
    )
