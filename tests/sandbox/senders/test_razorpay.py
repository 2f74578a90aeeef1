"""Razorpay tells of payments, refunds and payouts in its own words, to the field."""

import random
from functools import partial

from couponflow.sandbox.senders import razorpay
from couponflow.sandbox.senders.events import Event
from couponflow.sandbox.senders.made_up import shop_order
from tests.sandbox.senders.lives import BEGAN, bodies, courses, lives_of

PAYMENT_FIELDS = {
    *("id", "entity", "amount", "base_amount", "currency", "status", "order_id", "invoice_id"),
    *("international", "method", "amount_refunded", "amount_transferred", "refund_status"),
    *("captured", "description", "card_id", "bank", "wallet", "vpa", "email", "contact", "notes"),
    *("fee", "tax", "error_code", "error_description", "error_source", "error_step"),
    *("error_reason", "acquirer_data", "created_at"),
}
PAYOUT_FIELDS = {
    *("id", "entity", "fund_account_id", "amount", "currency", "notes", "fees", "tax", "status"),
    *("purpose", "utr", "mode", "reference_id", "narration", "batch_id", "status_details"),
    "created_at",
}


def payment(randomness: random.Random) -> list[Event]:
    return razorpay.payment_events(
        shop_order(randomness, BEGAN), "order_PgQ0w6zA1bC2dE", randomness
    )


def test_payments_take_every_way_and_never_go_back() -> None:
    lives = lives_of(payment)
    assert courses(lives, "payment") == {
        ("failed",),
        ("authorized",),
        ("authorized", "captured"),
        ("failed", "authorized", "captured"),
    }
    assert courses(lives, "refund") == {("pending", "processed"), ("pending", "failed")}
    assert {course[-1] for course in courses(lives, "order")} == {
        *("attempted", "paid", "partially_refunded", "refunded")
    }


def test_a_payments_events_have_the_fields_of_its_snapshots() -> None:
    names = set()
    for life in lives_of(payment):
        for event, body in zip(life, bodies(life), strict=True):
            names.add(body["event"])
            assert body["event"] == event.event_type
            assert set(body) == {
                *("entity", "account_id", "event", "contains", "payload", "created_at")
            }
            assert body["contains"] == list(body["payload"])
            entity = body["payload"]["payment"]["entity"]
            assert set(entity) - {"card", "token_id", "upi"} == PAYMENT_FIELDS
            assert entity["order_id"] == "order_PgQ0w6zA1bC2dE"
            assert entity["notes"] == []
            assert (entity["error_code"] is not None) == (entity["status"] == "failed")
    assert names == {
        *("payment.failed", "payment.authorized", "payment.captured", "order.paid"),
        *("refund.created", "refund.processed", "refund.failed"),
    }


def test_order_paid_tells_of_the_same_money_as_the_capture_before_it() -> None:
    paid = [life for life in lives_of(payment) if any(e.event_type == "order.paid" for e in life)]
    for life in paid:
        by_name = {body["event"]: body["payload"] for body in bodies(life)}
        captured = by_name["payment.captured"]["payment"]["entity"]
        assert by_name["order.paid"]["payment"]["entity"] == captured
        order = by_name["order.paid"]["order"]["entity"]
        assert (order["amount_paid"], order["status"]) == (captured["amount"], "paid")
    assert len(paid) > 30


def test_a_refund_is_of_the_payment_that_is_shown_beside_it() -> None:
    refunded = set()
    for life in lives_of(payment):
        for body in bodies(life):
            if body["event"] == "refund.processed":
                refund = body["payload"]["refund"]["entity"]
                shown = body["payload"]["payment"]["entity"]
                assert refund["payment_id"] == shown["id"]
                assert shown["amount_refunded"] == refund["amount"]
                refunded.add((shown["status"], shown["refund_status"]))
    assert refunded == {("refunded", "full"), ("captured", "partial")}


def test_payouts_take_every_way_and_money_that_arrived_may_come_back() -> None:
    lives = lives_of(partial(razorpay.payout_events, BEGAN))
    assert courses(lives, "payout") == {
        ("queued", "processing", "processed"),
        ("pending", "processing", "processed"),
        ("processing", "processed"),
        ("processing", "processed", "reversed"),
        ("processing", "failed"),
        ("pending", "rejected"),
    }
    for life in lives:
        for body in bodies(life):
            entity = body["payload"]["payout"]["entity"]
            assert set(entity) == PAYOUT_FIELDS
            assert body["event"] in (f"payout.{entity['status']}", "payout.initiated")


def test_events_of_a_life_have_ids_of_their_own() -> None:
    ids = [event.event_id for life in lives_of(payment) for event in life]
    assert len(set(ids)) == len(ids)
