"""The four affiliate networks' postbacks: what they think of a sale, in parameters of a URL.

An affiliate writes the URL and its parameters' names; here each is called as the macro that is put
in, or as the field of the network's report where the network has no macros. Admitad and
vCommission are known to send postbacks; CueLinks and CJ send some by agreement.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

import msgspec

from couponflow.sandbox.senders.events import Event, NetworkName, Thing, Told
from couponflow.sandbox.senders.made_up import (
    Course,
    digits,
    ist_text,
    token,
    utc_text,
)

_HOUR = 3_600


class _Sale(msgspec.Struct, frozen=True, kw_only=True):
    """What a network knows of a sale from the beginning."""

    native_id: str
    """What couponflow calls it; vCommission calls it nothing."""
    click_ref: str
    order_id: str
    amount: str
    commission: str
    clicked_at: int
    bought_at: int


class _Step(msgspec.Struct, frozen=True):
    """A status, as couponflow and as the network calls it, with what else changes."""

    state: str
    status: str
    extra: dict[str, str] = {}


_ADMITAD_NEW = _Step("pending", "new", {"reward_ready": "false"})
_ADMITAD_APPROVED = _Step("confirmed", "approved", {"reward_ready": "false"})
_ADMITAD_LIVES = (
    (_ADMITAD_NEW, _ADMITAD_APPROVED, _Step("payable", "approved", {"reward_ready": "true"})),
    (_ADMITAD_NEW, _ADMITAD_APPROVED),
    (_ADMITAD_NEW, _Step("rejected", "declined", {"reward_ready": "false"})),
    # In a postback, pending is no beginning: it was approved and is looked at again.
    (
        _ADMITAD_NEW,
        _ADMITAD_APPROVED,
        _Step("held", "pending", {"reward_ready": "false"}),
        _Step("rejected", "declined", {"reward_ready": "false"}),
    ),
)
# It never tells that it rejects something.
_VCOMMISSION_LIVES = (
    (_Step("pending", "pending"), _Step("confirmed", "approved")),
    (_Step("confirmed", "approved"),),
)
_CUELINKS_LIVES = (
    (
        _Step("pending", "pending"),
        _Step("confirmed", "validated"),
        _Step("payable", "payable"),
        _Step("paid", "paid"),
    ),
    (_Step("pending", "pending"), _Step("confirmed", "validated"), _Step("payable", "payable")),
    (_Step("pending", "pending"), _Step("rejected", "rejected")),
)
_CJ_LIVES = (
    (_Step("pending", "new"), _Step("payable", "locked"), _Step("paid", "closed")),
    (_Step("pending", "new"), _Step("pending", "extended"), _Step("payable", "locked")),
)

_LIVES: dict[NetworkName, tuple[tuple[_Step, ...], ...]] = {
    "admitad": _ADMITAD_LIVES,
    "vcommission": _VCOMMISSION_LIVES,
    "cuelinks": _CUELINKS_LIVES,
    "cj": _CJ_LIVES,
}


def network_events(
    network: NetworkName, click_ids: Sequence[str], began: int, randomness: random.Random
) -> list[Event]:
    """One sale's life within a day, of one of the clicks; without any, of nobody's."""
    course = Course(began, randomness)
    sale = _sale(network, click_ids, course, randomness)
    is_post = network == "admitad" and randomness.random() < 0.5
    thing = Thing("transaction", sale.native_id, network)
    events = []
    for step in randomness.choice(_LIVES[network]):
        at = course.later(600, 4 * _HOUR)
        parameters = urlencode(_PARAMETERS[network](sale, step))
        events.append(
            Event(
                source=network,
                event_id=f"{sale.native_id} {step.status} {step.extra.get('reward_ready', '')}",
                event_type=step.status,
                method="POST" if is_post else "GET",
                query="" if is_post else parameters,
                content_type="application/x-www-form-urlencoded",
                body=parameters.encode() if is_post else b"",
                told=(Told(thing, step.state, at),),
            )
        )
    return events


def _sale(
    network: NetworkName, click_ids: Sequence[str], course: Course, randomness: random.Random
) -> _Sale:
    native_id = digits(randomness, 10 if network in ("vcommission", "cj") else 9)
    amount_minor = randomness.randrange(49_900, 999_900, 100)
    mills = amount_minor * randomness.randint(20, 90) // 100
    commission = f"{mills // 1_000}.{mills % 1_000:03}"
    click_ref = randomness.choice(click_ids) if click_ids else ""
    order_id = f"KV-{digits(randomness, 5)}-{token(randomness, 1).upper()}"
    if network == "vcommission":
        order_id = f"OD-{native_id}"
        # Made from what tells it from other sales: the order, the click, and no campaign.
        parts = f"{order_id}\0{click_ref}\0"
        native_id = f"stand-in:{hashlib.sha256(parts.encode()).hexdigest()}"
    return _Sale(
        native_id=native_id,
        click_ref=click_ref,
        order_id=order_id,
        amount=f"{amount_minor // 100}.{amount_minor % 100:02}",
        # CJ's amounts have three decimals.
        commission=commission if network == "cj" else commission[:-1],
        clicked_at=course.at,
        bought_at=course.later(120, 3_000),
    )


def _admitad(sale: _Sale, step: _Step) -> dict[str, str]:
    return {
        "admitad_id": sale.native_id,
        "action_id": sale.native_id,
        "offer_id": "30117",
        "offer_name": "Kavya Home [CPS] IN",
        "website_id": "2210877",
        "subid": sale.click_ref,
        "action": "Paid order, returning customer",
        "payment_sum": sale.commission,
        "currency": "INR",
        "payment_status": step.status,
        "order_id": sale.order_id,
        "order_sum": sale.amount,
        "click_time": str(sale.clicked_at),
        "time": str(sale.bought_at),
        "conversion_time": str(sale.bought_at - sale.clicked_at),
        "type": "sale",
        **step.extra,
    }


def _vcommission(sale: _Sale, step: _Step) -> dict[str, str]:
    """It has no macro for the status, nor for the currency: each URL says its own.

    Nor has it one for an id of its own: `txn_id` is the order's, with the advertiser.
    """
    return {
        "p1": sale.click_ref,
        "txn_id": sale.order_id,
        "payout": sale.commission,
        "goal_value": "",
        "currency": "INR",
        "status": step.status,
    }


def _cuelinks(sale: _Sale, step: _Step) -> dict[str, str]:
    return {
        "id": sale.native_id,
        "aff_sub": sale.click_ref,
        "subid1": sale.click_ref,
        "sale_amount": sale.amount,
        "user_commission": sale.commission,
        "currency": "INR",
        "status": step.status,
        "store_name": "Nimbus Electronics",
        "campaign_id": "731",
        "transaction_date": f"{ist_text(sale.bought_at, '%Y-%m-%dT%H:%M:%S')}+05:30",
        "order_id": sale.order_id,
    }


def _cj(sale: _Sale, step: _Step) -> dict[str, str]:
    return {
        "commissionId": sale.native_id,
        "originalActionId": sale.native_id,
        "original": "true",
        "shopperId": sale.click_ref,
        "actionStatus": step.status,
        "actionType": "sim_sale",
        "advertiserId": "5551001",
        "orderId": sale.order_id,
        "clickDate": utc_text(sale.clicked_at),
        "eventDate": utc_text(sale.bought_at),
        "saleAmountPubCurrency": sale.amount,
        "pubCommissionAmountPubCurrency": sale.commission,
    }


_PARAMETERS: dict[NetworkName, Callable[[_Sale, _Step], dict[str, str]]] = {
    "admitad": _admitad,
    "vcommission": _vcommission,
    "cuelinks": _cuelinks,
    "cj": _cj,
}
