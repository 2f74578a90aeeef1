"""What all providers send within a while: lives in step, then chaos on their way to us."""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from couponflow.sandbox.senders import msg91, qstash, razorpay, stripe
from couponflow.sandbox.senders.carriers import easypost_events, shiprocket_events
from couponflow.sandbox.senders.events import Event, SignedRequest, Thing, Told
from couponflow.sandbox.senders.keys import SenderKeys
from couponflow.sandbox.senders.made_up import shop_order
from couponflow.sandbox.senders.networks import network_events
from couponflow.sandbox.senders.sendgrid import email_events, engagement_events
from couponflow.sandbox.senders.signing import sign, sign_again

# All lives began a day ago, so that nothing in them lies in the future.
_LIFE_SECONDS = 86_400
_HOUR = 3_600
_MAX_DUPLICATES = 3


class Chaos(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to events on their way; probabilities are of each event."""

    step_seconds: float = 1.0
    """Between the events of a life, and between the beginnings of lives."""
    reorder_seconds: float = 3.0
    """Each may take up to this long, so that it is overtaken by others."""
    duplicate_probability: float = 0.15
    """Of being delivered again, and after that again."""
    delay_probability: float = 0.1
    delay_seconds: float = 15.0
    late_probability: float = 0.03
    late_seconds: float = 60.0


DISORDERLY = Chaos()
ORDERLY = Chaos(
    reorder_seconds=0.0, duplicate_probability=0.0, delay_probability=0.0, late_probability=0.0
)
"""Nothing happens: once each, in order."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon has that events can tell of.

    Without any, nothing is told of emails but that they are opened, nothing of text messages, and
    sales are nobody's.
    """

    email_notification_ids: Sequence[str] = ()
    sms_notification_ids: Sequence[str] = ()
    """Handed on with the text message, as its client id."""
    sms_request_ids: Sequence[str] = ()
    """What MSG91 answered, where nothing was handed on."""
    click_ids: Sequence[str] = ()


NOTHING_KNOWN = Known()


def script(
    randomness: random.Random,
    keys: SenderKeys,
    now: float,
    lives: int,
    chaos: Chaos,
    known: Known = NOTHING_KNOWN,
) -> list[SignedRequest]:
    """So many lives, all kinds by turns, and those of the known notifications.

    Signed within the seconds before `now`, in the order in which the requests should be sent.
    Whoever sends one much later signs it again (`sign_again`): Stripe's and QStash's signatures
    grow old.
    """
    requests = [
        each
        for place, life in enumerate(_lives(randomness, int(now), lives, known))
        for each in _planned(life, place, randomness, keys, now, chaos)
    ]
    requests.sort(key=lambda request: request.not_before_seconds)
    if not requests:
        return []
    first = requests[0].not_before_seconds
    return [_moved(request, request.not_before_seconds - first) for request in requests]


def expected(requests: Iterable[SignedRequest]) -> dict[Thing, str]:
    """The state in which each thing ends when all of them have arrived, however they did."""
    last: dict[Thing, Told] = {}
    for request in requests:
        for told in request.event.told:
            if told.thing not in last or told.at > last[told.thing].at:
                last[told.thing] = told
    return {thing: told.state for thing, told in last.items()}


_Life = Callable[[int, random.Random], list[Event]]


def _lives(randomness: random.Random, now: int, lives: int, known: Known) -> list[list[Event]]:
    began = now - _LIFE_SECONDS
    kinds: tuple[_Life, ...] = (
        _razorpay_order,
        _stripe_order,
        partial(network_events, "admitad", known.click_ids),
        partial(network_events, "vcommission", known.click_ids),
        partial(network_events, "cuelinks", known.click_ids),
        partial(network_events, "cj", known.click_ids),
        engagement_events,
        easypost_events,
        razorpay.payout_events,
        qstash.stock_events,
        qstash.checkout_events,
        qstash.service_events,
    )
    lived = [kinds[number % len(kinds)](began, randomness) for number in range(lives)]
    lived.append(email_events(known.email_notification_ids, began, randomness))
    lived.append(msg91.reports_by_notification(known.sms_notification_ids, began, randomness))
    lived.append(msg91.reports_by_request(known.sms_request_ids, began, randomness))
    return lived


def _razorpay_order(began: int, randomness: random.Random) -> list[Event]:
    order = shop_order(randomness, began)
    order_id = razorpay.order_id(randomness)
    return [
        qstash.order_created(order, "razorpay", order_id, randomness),
        *razorpay.payment_events(order, order_id, randomness),
        *shiprocket_events(order, began + _HOUR, randomness),
    ]


def _stripe_order(began: int, randomness: random.Random) -> list[Event]:
    order = shop_order(randomness, began, randomness.choice(("INR", "USD")))
    return [
        qstash.order_created(order, "stripe", None, randomness),
        *stripe.payment_events(order, randomness),
    ]


def _planned(
    life: Sequence[Event],
    place: int,
    randomness: random.Random,
    keys: SenderKeys,
    now: float,
    chaos: Chaos,
) -> Iterable[SignedRequest]:
    for step, event in enumerate(life):
        due = (place + step) * chaos.step_seconds
        due += _mishap_seconds(randomness, chaos)
        # No signature is of the future, and no two deliveries are of the same second.
        first = _moved(sign(event, keys, now - _MAX_DUPLICATES), due)
        yield first
        retried = 0
        while retried < _MAX_DUPLICATES and randomness.random() < chaos.duplicate_probability:
            retried += 1
            due += _mishap_seconds(randomness, chaos)
            signed_at = now - _MAX_DUPLICATES + retried
            yield _moved(sign_again(first, keys, signed_at, retried), due)


def _mishap_seconds(randomness: random.Random, chaos: Chaos) -> float:
    """How long a delivery is on its way."""
    seconds = randomness.uniform(0, chaos.reorder_seconds)
    if randomness.random() < chaos.delay_probability:
        seconds += randomness.uniform(0, chaos.delay_seconds)
    if randomness.random() < chaos.late_probability:
        seconds += chaos.late_seconds
    return seconds


def _moved(request: SignedRequest, seconds: float) -> SignedRequest:
    return msgspec.structs.replace(request, not_before_seconds=seconds)
