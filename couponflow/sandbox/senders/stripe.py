"""Stripe: what it tells of a payment intent and of its refund."""

import random
from typing import Literal

import msgspec

from couponflow.sandbox.senders.events import Event, Thing, Told
from couponflow.sandbox.senders.made_up import Course, ShopOrder, token

_API_VERSION = "2026-10-28.endive"
_Ending = Literal["paid", "failed_then_paid", "failed", "captured_by_hand", "refunded"]
_ENDINGS: dict[_Ending, int] = {
    "paid": 45,
    "failed_then_paid": 20,
    "failed": 10,
    "captured_by_hand": 10,
    "refunded": 15,
}


def payment_events(order: ShopOrder, randomness: random.Random) -> list[Event]:
    """One intent's life within about an hour, in the order in which it happened."""
    course = Course(order.created_at, randomness)
    ending = randomness.choices(list(_ENDINGS), list(_ENDINGS.values()))[0]
    intent = _Intent(order, course.later(5, 90), randomness, manual=ending == "captured_by_hand")
    told = [intent.tell("created", "requires_payment_method", "created", course.at)]
    if ending in ("failed", "failed_then_paid"):
        at = course.later(5, 300)
        told.append(intent.tell("payment_failed", "requires_payment_method", "failed", at))
    if ending == "failed":
        return told
    if ending == "captured_by_hand":
        name, at = "amount_capturable_updated", course.later(5, 300)
        told.append(intent.tell(name, "requires_capture", "authorized", at))
    told.append(intent.tell("succeeded", "succeeded", "captured", course.later(5, 900)))
    return told + intent.refund(course) if ending == "refunded" else told


class _Intent:
    """A payment intent as its snapshots show it."""

    def __init__(
        self, order: ShopOrder, created: int, randomness: random.Random, *, manual: bool
    ) -> None:
        self._order = order
        self._created = created
        self._randomness = randomness
        self._manual = manual
        self._id = f"pi_3{token(randomness, 23)}"
        self._charge_id = f"ch_3{token(randomness, 23)}"
        self._payment_method_id = f"pm_1{token(randomness, 23)}"
        self._thing = Thing("payment", self._id, "stripe")
        self._order_thing = Thing("order", order.number)

    def tell(self, name: str, status: str, state: str, at: int) -> Event:
        order_state = "paid" if state == "captured" else "attempted"
        told = [Told(self._thing, state, at), Told(self._order_thing, order_state, at)]
        entity = self._entity(status, failed=state == "failed")
        return self._event(f"payment_intent.{name}", entity, at, told)

    def refund(self, course: Course) -> list[Event]:
        """All of it, or half."""
        refund_id = f"re_3{token(self._randomness, 23)}"
        whole = self._order.amount_minor
        amount = self._randomness.choice((whole, whole // 2))
        created = course.later(60, 1_200)
        last = self._randomness.choice(
            (("refund.updated", "succeeded", "processed"), ("refund.failed", "failed", "failed"))
        )
        events = []
        for name, status, state in (("refund.created", "pending", "pending"), last):
            entity: dict[str, object] = {
                "id": refund_id,
                "object": "refund",
                "amount": amount,
                "balance_transaction": f"txn_3{token(self._randomness, 23)}",
                "charge": self._charge_id,
                "created": created,
                "currency": self._order.currency.lower(),
                "metadata": {},
                "payment_intent": self._id,
                "reason": "requested_by_customer",
                "receipt_number": None,
                "status": status,
            }
            told = [Told(Thing("refund", refund_id, "stripe"), state, course.at)]
            if state == "processed":
                order_state = "refunded" if amount == whole else "partially_refunded"
                told.append(Told(self._order_thing, order_state, course.at))
            events.append(self._event(name, entity, course.at, told))
            course.later(60, 900)
        return events

    def _entity(self, status: str, *, failed: bool) -> dict[str, object]:
        amount = self._order.amount_minor
        error = {
            "type": "card_error",
            "code": "card_declined",
            "decline_code": "insufficient_funds",
            "message": "Your card has insufficient funds.",
        }
        paid = status == "succeeded"
        held = status == "requires_capture"
        return {
            "id": self._id,
            "object": "payment_intent",
            "amount": amount,
            "amount_capturable": amount if held else 0,
            "amount_received": amount if paid else 0,
            "cancellation_reason": None,
            "canceled_at": None,
            "capture_method": "manual" if self._manual else "automatic",
            "client_secret": None,
            "confirmation_method": "automatic",
            "created": self._created,
            "currency": self._order.currency.lower(),
            "customer": None,
            "description": None,
            "last_payment_error": error if failed else None,
            "latest_charge": self._charge_id if paid or held or failed else None,
            "livemode": False,
            "metadata": {"order_id": self._order.number},
            "next_action": None,
            "payment_method": self._payment_method_id if paid or held else None,
            "payment_method_types": ["card"],
            "receipt_email": self._order.buyer.email,
            "shipping": None,
            "statement_descriptor": None,
            "status": status,
            "transfer_group": None,
        }

    def _event(self, name: str, entity: dict[str, object], at: int, told: list[Told]) -> Event:
        event_id = f"evt_3{token(self._randomness, 23)}"
        body = {
            "id": event_id,
            "object": "event",
            "api_version": _API_VERSION,
            "created": at,
            "data": {"object": entity},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": f"req_{token(self._randomness, 14)}", "idempotency_key": None},
            "type": name,
        }
        return Event(
            source="stripe",
            event_id=event_id,
            event_type=name,
            content_type="application/json; charset=utf-8",
            body=msgspec.json.encode(body),
            told=tuple(told),
        )
