"""EasyPost and Shiprocket tell where parcels are, with everything that was before."""

import random
from functools import partial

from couponflow.sandbox.senders.carriers import easypost_events, shiprocket_events
from couponflow.sandbox.senders.events import Event
from couponflow.sandbox.senders.made_up import shop_order
from tests.sandbox.senders.lives import BEGAN, bodies, courses, lives_of

EASYPOST = lives_of(partial(easypost_events, BEGAN))


def parcel(randomness: random.Random) -> list[Event]:
    return shiprocket_events(shop_order(randomness, BEGAN), BEGAN, randomness)


SHIPROCKET = lives_of(parcel)


def test_parcels_take_every_way() -> None:
    begin = ("pre_transit", "in_transit", "out_for_delivery")
    assert courses(EASYPOST, "shipment") == {
        (*begin, "delivered"),
        (*begin, "failure"),
        (*begin, "return_to_sender"),
    }
    assert courses(SHIPROCKET, "shipment") == {
        (*begin, "delivered"),
        (*begin, "return_to_sender", "returned"),
    }


def test_easypost_tells_what_changed_and_all_that_was_before() -> None:
    for life in EASYPOST:
        before = ""
        for place, body in enumerate(bodies(life), start=1):
            assert body["description"] == ("tracker.updated" if before else "tracker.created")
            assert body["previous_attributes"] == ({"status": before} if before else {})
            tracker = body["result"]
            details = tracker["tracking_details"]
            assert len(details) == place
            assert details[-1]["status"] == tracker["status"]
            before = tracker["status"]


def test_shiprocket_has_two_tables_of_codes_and_two_ways_to_write_a_time() -> None:
    codes = set()
    for life in SHIPROCKET:
        for body in bodies(life):
            codes.add(
                (body["shipment_status"], body["current_status_id"], body["shipment_status_id"])
            )
            newest = body["scans"][0]
            day, month, year, time = body["current_timestamp"].split(" ")
            assert newest["date"] == f"{year}-{month}-{day} {time}"
            assert newest["sr-status"] == str(body["shipment_status_id"])
            assert [scan["date"] for scan in body["scans"]] == sorted(
                (scan["date"] for scan in body["scans"]), reverse=True
            )
    assert ("IN TRANSIT", 20, 18) in codes
    assert ("DELIVERED", 7, 7) in codes


def test_shiprocket_knows_the_order() -> None:
    order = shop_order(random.Random(5), BEGAN)
    life = shiprocket_events(order, BEGAN, random.Random(6))
    assert {body["order_id"] for body in bodies(life)} == {order.number}
    assert len({event.event_id for event in life}) == len(life)
