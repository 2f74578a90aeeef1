"""The same seed makes the same script, and chaos changes when events come but not what they say."""

import random
from collections import defaultdict

import pytest

from couponflow.sandbox.senders.events import Event, SignedRequest, Thing, Told
from couponflow.sandbox.senders.keys import demo_keys
from couponflow.sandbox.senders.script import (
    DISORDERLY,
    NOTHING_KNOWN,
    ORDERLY,
    Chaos,
    Known,
    expected,
    script,
)
from couponflow.sandbox.senders.signing import sign, sign_again

pytestmark = pytest.mark.once

KEYS = demo_keys(random.Random(1))
NOW = 1_790_000_000.0
KNOWN = Known(
    email_notification_ids=[f"00000000-0000-4000-8000-{number:012}" for number in range(6)],
    sms_notification_ids=[f"00000000-0000-4000-8000-{number:012}" for number in range(6, 9)],
    sms_request_ids=["346c6f1e2a3b4c5d6e7f8091"],
    click_ids=["0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a"],
)


def made(
    seed: int, lives: int = 36, chaos: Chaos = DISORDERLY, known: Known = KNOWN
) -> list[SignedRequest]:
    return script(random.Random(seed), KEYS, NOW, lives, chaos, known)


def test_the_same_seed_makes_the_same_script_to_the_byte() -> None:
    assert made(3) == made(3)
    assert {request.event_id for request in made(3)}.isdisjoint(
        request.event_id for request in made(4, known=NOTHING_KNOWN)
    )


def test_twelve_lives_are_of_all_providers_and_the_known_ids_bring_the_rest() -> None:
    unknown = {request.source for request in made(5, lives=12, known=NOTHING_KNOWN)}
    assert unknown == {
        *("razorpay", "stripe", "sendgrid", "admitad", "vcommission", "cuelinks", "cj"),
        *("qstash", "easypost", "shiprocket"),
    }
    assert {request.source for request in made(5, lives=12)} == unknown | {"msg91"}


def test_nothing_is_told_before_it_happened() -> None:
    assert all(told.at < NOW for request in made(6) for told in request.event.told)


def test_requests_are_in_the_order_in_which_they_are_due_from_the_beginning_on() -> None:
    due = [request.not_before_seconds for request in made(7)]
    assert due == sorted(due)
    assert due[0] == 0.0


def test_without_chaos_every_event_comes_once_and_after_what_happened_before_it() -> None:
    requests = made(8, chaos=ORDERLY)
    assert len({request.event_id for request in requests}) == len(requests)
    assert out_of_order(requests) == 0


def test_chaos_delivers_events_out_of_order_again_and_late() -> None:
    orderly, requests = made(9, chaos=ORDERLY), made(9)
    assert len(requests) > 1.1 * len(orderly)
    assert out_of_order(requests) > 20
    last_in_order = orderly[-1].not_before_seconds
    late = [each for each in requests if each.not_before_seconds > last_in_order + 30]
    assert 0 < len(late) < len(requests) / 10


def test_each_probability_and_duration_does_what_its_name_says() -> None:
    orderly = made(10, chaos=ORDERLY)
    doubled = Chaos(
        reorder_seconds=0.0, duplicate_probability=1.0, delay_probability=0.0, late_probability=0.0
    )
    assert len(made(10, chaos=doubled)) == 4 * len(orderly)
    at_once = Chaos(step_seconds=0.0, delay_probability=0.0, late_probability=0.0)
    # A duplicate follows its like, the third of them after four times the three seconds.
    assert made(10, chaos=at_once)[-1].not_before_seconds <= 12.0
    late = Chaos(step_seconds=0.0, reorder_seconds=0.0, delay_probability=0.0, late_seconds=500.0)
    waits = {round(request.not_before_seconds) for request in made(10, chaos=late)}
    assert waits <= {0, 500, 1_000}
    assert 500 in waits


def test_a_duplicate_is_another_delivery_of_the_same_event() -> None:
    deliveries = defaultdict(list)
    for request in made(11, lives=72):
        deliveries[request.source, request.event_id].append(request)
    again = [each for each in deliveries.values() if len(each) > 1]
    assert {each[0].source for each in again} >= {"razorpay", "stripe", "qstash", "sendgrid"}
    for each in again:
        # They may have overtaken each other.
        first, *others = sorted(each, key=lambda request: request.retried)
        assert first.retried == 0
        assert [request.retried for request in others] == list(range(1, len(each)))
        for request in others:
            assert (request.event, request.body) == (first.event, first.body)
            signed_anew = first.source in ("stripe", "qstash")
            assert (request.headers != first.headers) == signed_anew


def test_what_is_expected_does_not_depend_on_chaos_or_on_the_order_of_arrival() -> None:
    requests = made(12, lives=144)
    wanted = expected(requests)
    shuffled = list(requests)
    random.Random(0).shuffle(shuffled)
    assert expected(shuffled) == wanted
    assert {thing.kind for thing in wanted} == {
        *("order", "payment", "refund", "payout", "shipment", "transaction", "email", "sms"),
        "stock",
    }


def test_what_is_expected_is_the_latest_state_of_each_thing() -> None:
    payment, refund = Thing("payment", "pay_1", "razorpay"), Thing("refund", "rfnd_1", "razorpay")
    captured, failed = Told(payment, "captured", 20), Told(payment, "failed", 10)
    events = [
        Event(source="razorpay", event_id="2", body=b"{}", told=(captured, Told(refund, "x", 5))),
        Event(source="razorpay", event_id="1", body=b"{}", told=(failed,)),
    ]
    requests = [sign(event, KEYS, NOW) for event in events]
    requests.append(sign_again(requests[1], KEYS, NOW, retried=1))
    assert expected(requests) == {payment: "captured", refund: "x"}


@pytest.mark.parametrize("seed", range(5))
def test_no_two_states_of_a_thing_are_of_the_same_second(seed: int) -> None:
    states = defaultdict(set)
    for request in made(seed):
        for told in request.event.told:
            states[told.thing, told.at].add(told.state)
    assert [moment for moment, found in states.items() if len(found) > 1] == []


def test_no_lives_make_no_requests() -> None:
    assert made(1, lives=0, known=NOTHING_KNOWN) == []


def out_of_order(requests: list[SignedRequest]) -> int:
    """How often something is told that happened before what was told of the same thing."""
    latest: dict[Thing, int] = {}
    count = 0
    for request in requests:
        for told in request.event.told:
            count += told.at < latest.get(told.thing, 0)
            latest[told.thing] = max(told.at, latest.get(told.thing, 0))
    return count
