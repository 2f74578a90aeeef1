"""EasyPost and Shiprocket: where a parcel is."""

import random

import msgspec

from couponflow.sandbox.senders.events import Event, Thing, Told
from couponflow.sandbox.senders.made_up import (
    Course,
    ShopOrder,
    digits,
    hex_id,
    ist_text,
    utc_text,
)

_HOUR = 3_600


class _Step(msgspec.Struct, frozen=True):
    """A stage of a parcel's way, as couponflow and as the carrier calls it."""

    state: str
    detail: str
    text: str


_EASYPOST_WAY = (
    _Step("pre_transit", "status_update", "Shipping label created"),
    _Step("in_transit", "arrived_at_facility", "Arrived at facility"),
    _Step("out_for_delivery", "out_for_delivery", "Out for delivery"),
)
_EASYPOST_ENDS = (
    _Step("delivered", "arrived_at_destination", "Delivered"),
    _Step("delivered", "arrived_at_destination", "Delivered"),
    _Step("failure", "delivery_attempted", "Delivery failed"),
    _Step("return_to_sender", "return", "Returned to sender"),
)


def easypost_events(began: int, randomness: random.Random) -> list[Event]:
    """One tracker's life within a day; its provider knows nothing of our orders."""
    course = Course(began, randomness)
    tracker_id = f"trk_{hex_id(randomness, 32)}"
    tracking_code = f"9400{digits(randomness, 18)}"
    thing = Thing("shipment", tracking_code, "easypost")
    way = [*_EASYPOST_WAY, randomness.choice(_EASYPOST_ENDS)]
    details: list[dict[str, object]] = []
    events, before = [], ""
    for step in way:
        at = course.later(600, 4 * _HOUR)
        details.append(_easypost_detail(step, at))
        tracker: dict[str, object] = {
            "id": tracker_id,
            "object": "Tracker",
            "mode": "test",
            "tracking_code": tracking_code,
            "carrier": "USPS",
            "status": step.state,
            "status_detail": step.detail,
            "signed_by": None,
            "est_delivery_date": utc_text(began + 24 * _HOUR),
            "shipment_id": None,
            "weight": 17.6,
            "tracking_details": list(details),
        }
        events.append(_easypost_event(tracker, before, at, Told(thing, step.state, at), randomness))
        before = step.state
    return events


def _easypost_detail(step: _Step, at: int) -> dict[str, object]:
    return {
        "object": "TrackingDetail",
        "message": step.text,
        "status": step.state,
        "status_detail": step.detail,
        "datetime": utc_text(at),
        "source": "USPS",
        "tracking_location": {
            "object": "TrackingLocation",
            "city": "REDONDO BEACH",
            "state": "CA",
            "country": "US",
            "zip": "90277",
        },
    }


def _easypost_event(
    tracker: dict[str, object], before: str, at: int, told: Told, randomness: random.Random
) -> Event:
    event_id = f"evt_{hex_id(randomness, 32)}"
    description = "tracker.updated" if before else "tracker.created"
    body = {
        "id": event_id,
        "object": "Event",
        "mode": "test",
        "description": description,
        "status": "pending",
        "previous_attributes": {"status": before} if before else {},
        "pending_urls": ["https://shop.example/hooks/easypost"],
        "completed_urls": [],
        "created_at": utc_text(at),
        "updated_at": utc_text(at),
        "user_id": "user_1",
        "result": tracker,
    }
    return Event(
        source="easypost",
        event_id=event_id,
        event_type=description,
        body=msgspec.json.encode(body),
        told=(told,),
    )


class _Scan(msgspec.Struct, frozen=True):
    """A stage by Shiprocket's two tables of codes: one is of orders, the other of shipments."""

    state: str
    order_code: int
    shipment_code: int
    label: str


_SHIPROCKET_WAY = (
    _Scan("pre_transit", 4, 3, "PICKUP GENERATED"),
    _Scan("in_transit", 6, 42, "PICKED UP"),
    _Scan("in_transit", 20, 18, "IN TRANSIT"),
    _Scan("out_for_delivery", 19, 17, "OUT FOR DELIVERY"),
)
_SHIPROCKET_ENDS = (
    (_Scan("delivered", 7, 7, "DELIVERED"),),
    (_Scan("delivered", 7, 7, "DELIVERED"),),
    (
        _Scan("return_to_sender", 17, 9, "RTO INITIATED"),
        _Scan("returned", 18, 10, "RTO DELIVERED"),
    ),
)


def shiprocket_events(order: ShopOrder, began: int, randomness: random.Random) -> list[Event]:
    """The life of an order's parcel within a day."""
    course = Course(began, randomness)
    awb = digits(randomness, 14)
    thing = Thing("shipment", awb, "shiprocket")
    shiprocket_id = randomness.randrange(10**8, 10**9)
    scans: list[dict[str, str]] = []
    events = []
    for scan in (*_SHIPROCKET_WAY, *randomness.choice(_SHIPROCKET_ENDS)):
        at = course.later(600, 2 * _HOUR)
        # The newest is the first.
        scans.insert(0, _shiprocket_scan(scan, at))
        body = {
            "awb": awb,
            "courier_name": "Delhivery Surface",
            "current_status": scan.label,
            "current_status_id": scan.order_code,
            "shipment_status": scan.label,
            "shipment_status_id": scan.shipment_code,
            "current_timestamp": ist_text(at, "%d %m %Y %H:%M:%S"),
            "order_id": order.number,
            "sr_order_id": shiprocket_id,
            "awb_assigned_date": ist_text(began),
            "pickup_scheduled_date": ist_text(began + 1),
            "etd": ist_text(began + 24 * _HOUR),
            "scans": list(scans),
            "is_return": 1 if scan.label.startswith("RTO") else 0,
            "channel_id": 3422553,
            "pod_status": "OTP Based Delivery",
            "pod": "Not Available",
            "qc_image": "",
            "qc_failure_reason": "",
        }
        events.append(
            Event(
                source="shiprocket",
                event_id=f"{awb} {scan.shipment_code} {scans[0]['date']}",
                event_type=scan.label,
                body=msgspec.json.encode(body),
                told=(Told(thing, scan.state, at),),
            )
        )
    return events


def _shiprocket_scan(scan: _Scan, at: int) -> dict[str, str]:
    return {
        "date": ist_text(at),
        "status": f"X-{scan.shipment_code}",
        "activity": scan.label.title(),
        "location": "Chomu (Rajasthan)",
        "sr-status": str(scan.shipment_code),
        "sr-status-label": scan.label,
    }
