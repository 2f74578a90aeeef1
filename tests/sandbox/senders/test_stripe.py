"""Stripe tells of payment intents and refunds in its own words, to the field."""

import random

from couponflow.sandbox.senders import stripe
from couponflow.sandbox.senders.events import Event
from couponflow.sandbox.senders.made_up import ShopOrder, shop_order
from tests.sandbox.senders.lives import BEGAN, bodies, courses, lives_of

STATUSES = {
    "payment_intent.created": "requires_payment_method",
    "payment_intent.payment_failed": "requires_payment_method",
    "payment_intent.amount_capturable_updated": "requires_capture",
    "payment_intent.succeeded": "succeeded",
    "refund.created": "pending",
    "refund.updated": "succeeded",
    "refund.failed": "failed",
}


def order(randomness: random.Random) -> ShopOrder:
    return shop_order(randomness, BEGAN, "USD")


def payment(randomness: random.Random) -> list[Event]:
    return stripe.payment_events(order(randomness), randomness)


def test_intents_take_every_way_and_never_go_back() -> None:
    lives = lives_of(payment)
    assert courses(lives, "payment") == {
        ("created", "captured"),
        ("created", "failed"),
        ("created", "failed", "captured"),
        ("created", "authorized", "captured"),
    }
    assert courses(lives, "refund") == {("pending", "processed"), ("pending", "failed")}


def test_events_are_in_stripes_envelope_with_a_status_that_fits_their_type() -> None:
    types = set()
    for life in lives_of(payment):
        for event, body in zip(life, bodies(life), strict=True):
            types.add(body["type"])
            assert set(body) == {
                *("id", "object", "api_version", "created", "data", "livemode"),
                *("pending_webhooks", "request", "type"),
            }
            assert (body["id"], body["object"]) == (event.event_id, "event")
            told = body["data"]["object"]
            assert told["status"] == STATUSES[body["type"]]
            assert told["currency"] == "usd"
    assert types == set(STATUSES)


def test_an_intent_names_the_order_and_a_refund_names_the_intent() -> None:
    for seed in range(20):
        ordered = order(random.Random(seed))
        life = bodies(payment(random.Random(seed)))
        intents = [body["data"]["object"] for body in life if body["type"].startswith("payment")]
        refunds = [body["data"]["object"] for body in life if body["type"].startswith("refund")]
        assert {intent["metadata"]["order_id"] for intent in intents} == {ordered.number}
        assert {intent["amount"] for intent in intents} == {ordered.amount_minor}
        assert {refund["payment_intent"] for refund in refunds} <= {intents[0]["id"]}
