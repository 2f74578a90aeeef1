"""QStash: what our other services publish through it, in the envelope they all use."""

import random

import msgspec

from couponflow.sandbox.senders.events import Event, Thing, Told
from couponflow.sandbox.senders.made_up import (
    Course,
    ShopOrder,
    hex_id,
    person,
    shop_order,
    token,
    utc_text,
)

_FAILURE_PROBABILITY = 0.1


def order_created(
    order: ShopOrder,
    payment_provider: str,
    provider_order_id: str | None,
    randomness: random.Random,
) -> Event:
    """The event without which no payment of the order has a meaning."""
    data: dict[str, object] = {
        **_order_data(order),
        "payment_provider": payment_provider,
        "created_at": order.created_at,
    }
    if provider_order_id is not None:
        data["provider_order_id"] = provider_order_id
    told = Told(Thing("order", order.number), "created", order.created_at)
    return _event("order.created", data, order.created_at, randomness, told)


def checkout_events(began: int, randomness: random.Random) -> list[Event]:
    """Somebody wants to buy something, and never pays."""
    order = shop_order(randomness, began)
    data = {**_order_data(order), "requested_at": began}
    told = Told(Thing("order", order.number), "created", began)
    return [_event("command.checkout", data, began, randomness, told)]


def stock_events(began: int, randomness: random.Random) -> list[Event]:
    """A few counts of one product, of which the latest holds."""
    course = Course(began, randomness)
    sku = f"SKU-{token(randomness, 8).upper()}"
    events = []
    for _ in range(randomness.randint(1, 4)):
        at, quantity = course.later(60, 3_600), randomness.randint(0, 500)
        data: dict[str, object] = {"sku": sku, "quantity": quantity, "reported_at": utc_text(at)}
        told = Told(Thing("stock", sku), str(quantity), at)
        events.append(_event("inventory.stock.updated", data, at, randomness, told))
    return events


def service_events(began: int, randomness: random.Random) -> list[Event]:
    """What other services tell of themselves: an email to be sent, an audit entry, a metric, and
    now and then a message given up.
    """
    buyer = person(randomness)
    number = f"CF-{token(randomness, 10).upper()}"
    datas: dict[str, dict[str, object]] = {
        "notification.email": {
            "to": buyer.email,
            "subject": f"Order {number}",
            "text": f"Thank you, {buyer.name}.",
            "html": f"<p>Thank you, {buyer.name}.</p>",
        },
        "analytics.audit": {
            "actor": "orders-service",
            "action": "order.viewed",
            "subject": number,
            "details": {"channel": randomness.choice(("web", "app"))},
        },
        "analytics.metric": {
            "name": "checkout_seconds",
            "value": randomness.randint(1, 400) / 100,
            "labels": {"service": "orders-service"},
            "measured_at": began,
        },
    }
    if randomness.random() < _FAILURE_PROBABILITY:
        datas["analytics.dlq"] = {
            "origin": "orders-service",
            "message": {"eventType": "order.archived", "data": {"number": number}},
            "reason": "nobody takes order.archived",
        }
    return [_event(name, data, began, randomness) for name, data in datas.items()]


def _order_data(order: ShopOrder) -> dict[str, object]:
    return {
        "number": order.number,
        "amount_minor": order.amount_minor,
        "currency": order.currency,
        "items": [msgspec.structs.asdict(item) for item in order.items],
    }


def _event(
    name: str, data: dict[str, object], at: int, randomness: random.Random, *told: Told
) -> Event:
    body = {"eventType": name, "data": data, "timestamp": utc_text(at)}
    return Event(
        source="qstash",
        event_id=f"msg_{hex_id(randomness, 40)}",
        event_type=name,
        body=msgspec.json.encode(body),
        told=told,
    )
