"""Our other services publish orders, stock and what they did, in one envelope."""

import random
from functools import partial
from itertools import pairwise

from couponflow.sandbox.senders import qstash
from couponflow.sandbox.senders.made_up import shop_order
from tests.sandbox.senders.lives import BEGAN, bodies, lives_of


def test_an_order_is_told_with_what_its_payments_will_refer_to() -> None:
    order = shop_order(random.Random(1), BEGAN)
    event = qstash.order_created(order, "razorpay", "order_PgQ0w6zA1bC2dE", random.Random(2))
    (body,) = bodies([event])
    assert body["eventType"] == event.event_type == "order.created"
    data = body["data"]
    assert (data["number"], data["amount_minor"]) == (order.number, order.amount_minor)
    assert (data["payment_provider"], data["provider_order_id"]) == (
        "razorpay",
        "order_PgQ0w6zA1bC2dE",
    )
    total = sum(item["quantity"] * item["unit_price_minor"] for item in data["items"])
    assert total == data["amount_minor"]
    assert event.subject == order.number


def test_an_order_may_be_one_that_its_payment_provider_has_no_name_for() -> None:
    order = shop_order(random.Random(1), BEGAN)
    (body,) = bodies([qstash.order_created(order, "stripe", None, random.Random(2))])
    assert "provider_order_id" not in body["data"]


def test_each_kind_of_event_is_told_with_its_fields() -> None:
    told = {}
    for make in (qstash.checkout_events, qstash.stock_events, qstash.service_events):
        for life in lives_of(partial(make, BEGAN)):
            told |= {body["eventType"]: set(body["data"]) for body in bodies(life)}
    assert told == {
        "command.checkout": {"number", "amount_minor", "currency", "items", "requested_at"},
        "inventory.stock.updated": {"sku", "quantity", "reported_at"},
        "notification.email": {"to", "subject", "text", "html"},
        "analytics.audit": {"actor", "action", "subject", "details"},
        "analytics.metric": {"name", "value", "labels", "measured_at"},
        "analytics.dlq": {"origin", "message", "reason"},
    }


def test_counts_of_a_product_come_one_after_the_other() -> None:
    for life in lives_of(partial(qstash.stock_events, BEGAN)):
        assert len({event.subject for event in life}) == 1
        moments = [event.told[0].at for event in life]
        assert all(earlier < later for earlier, later in pairwise(moments))
