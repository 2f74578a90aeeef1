"""Shiprocket's webhook: where parcels of Indian couriers are."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from couponflow.config_sources import ShiprocketSettings
from couponflow.messages import ShipmentReported, ShipmentState
from couponflow.webhooks.contract import (
    Delivery,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.parcels import directed
from couponflow.webhooks.sources.reading import peek, read
from couponflow.webhooks.sources.tokens import (
    live_tokens,
    refused_by_token,
    without_tokens,
)
from couponflow.webhooks.sources.values import (
    clipped,
    name_of,
    part_of,
    parts_of,
    seconds_of,
    text_of,
)

TOKEN_HEADER = "x-api-key"  # noqa: S105

# The shipment table; the order table numbers other things with the same numbers.
_SHIPMENT_TABLE: Mapping[str, tuple[str, ShipmentState]] = {
    "1": ("AWB ASSIGNED", "pre_transit"),
    "2": ("LABEL GENERATED", "pre_transit"),
    "3": ("PICKUP GENERATED", "pre_transit"),
    "4": ("PICKUP QUEUED", "pre_transit"),
    "5": ("MANIFEST GENERATED", "pre_transit"),
    "6": ("SHIPPED", "in_transit"),
    "7": ("DELIVERED", "delivered"),
    "8": ("CANCELLED", "cancelled"),
    "9": ("RTO INITIATED", "return_to_sender"),
    "10": ("RTO DELIVERED", "returned"),
    "12": ("LOST", "failure"),
    "13": ("PICKUP ERROR", "pre_transit"),
    "14": ("RTO ACKNOWLEDGED", "return_to_sender"),
    "15": ("PICKUP RESCHEDULED", "pre_transit"),
    # Asked for, and perhaps refused: it says nothing about where the parcel is.
    "16": ("CANCELLATION REQUESTED", "unknown"),
    "17": ("OUT FOR DELIVERY", "out_for_delivery"),
    "18": ("IN TRANSIT", "in_transit"),
    "19": ("OUT FOR PICKUP", "pre_transit"),
    "20": ("PICKUP EXCEPTION", "pre_transit"),
    "21": ("UNDELIVERED", "failure"),
    "22": ("DELAYED", "in_transit"),
    "23": ("PARTIAL DELIVERED", "failure"),
    "24": ("DESTROYED", "failure"),
    "25": ("DAMAGED", "failure"),
    # By the seller, outside Shiprocket: nobody saw it delivered.
    "26": ("FULFILLED", "unknown"),
    "38": ("REACHED DESTINATION HUB", "in_transit"),
    "39": ("MISROUTED", "in_transit"),
    "40": ("RTO NDR", "return_to_sender"),
    "41": ("RTO OUT FOR DELIVERY", "return_to_sender"),
    "42": ("PICKED UP", "in_transit"),
    "44": ("DISPOSED", "failure"),
    "45": ("CANCELLED BEFORE DISPATCH", "cancelled"),
    "46": ("RTO IN TRANSIT", "return_to_sender"),
}
_BY_LABEL: Mapping[str, ShipmentState] = {
    **dict(_SHIPMENT_TABLE.values()),
    "PARTIALLY DELIVERED": "failure",
}
_BETWEEN_WORDS = re.compile(r"[-_\s]+")
_TIME_FORMAT = "%d %m %Y %H:%M:%S"


class _Parcel(msgspec.Struct, frozen=True):
    awb: object = None
    courier_name: object = None
    current_status: object = None
    shipment_status: object = None
    shipment_status_id: object = None
    current_timestamp: object = None
    order_id: object = None
    scans: object = None
    is_return: object = None


_PARCEL = msgspec.json.Decoder(_Parcel)


class ShiprocketSource:
    """Known by a token, which it sends in a header or has as the last part of its URL."""

    name = "shiprocket"
    methods = frozenset({"POST"})
    header_names = (TOKEN_HEADER,)
    secret_header_names = frozenset({TOKEN_HEADER})

    def __init__(self, settings: ShiprocketSettings) -> None:
        self._tokens = live_tokens(settings.webhook_token)
        self._utc_offset_minutes = settings.utc_offset_minutes

    def verify(self, delivery: Delivery) -> Refused | None:
        given = (delivery.headers.get(TOKEN_HEADER, ""), delivery.token)
        return refused_by_token(self._tokens, given)

    def identify(self, delivery: Delivery) -> Identity:
        parcel = peek(_PARCEL, delivery.body)
        if parcel is None:
            return Identity()
        return Identity(name_of(_label(parcel)) or "", _event_id(parcel))

    def public_query(self, delivery: Delivery) -> str:
        return without_tokens(delivery.query)

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        parcel = read(_PARCEL, event.body)
        occurred_at = _local_moment(parcel.current_timestamp, self._utc_offset_minutes)
        message = ShipmentReported(
            provider=self.name,
            tracking_code=text_of(parcel.awb).strip(),
            carrier=name_of(parcel.courier_name) or "",
            order_number=name_of(parcel.order_id),
            state=directed(_state(parcel), parcel.is_return),
            state_native=clipped(_label(parcel)),
            detail=clipped(part_of(_last_scan(parcel), "activity")),
            occurred_at=event.received_at if occurred_at is None else occurred_at,
        )
        return [Translated(checked(message))]


def _label(parcel: _Parcel) -> str:
    return text_of(parcel.shipment_status) or text_of(parcel.current_status)


def _state(parcel: _Parcel) -> ShipmentState:
    """By its number, else by its whole label: UNDELIVERED holds DELIVERED."""
    numbered = _SHIPMENT_TABLE.get(text_of(parcel.shipment_status_id).strip())
    if numbered is not None:
        return numbered[1]
    label = _BETWEEN_WORDS.sub(" ", _label(parcel)).strip().upper()
    return _BY_LABEL.get(label, "unknown")


def _event_id(parcel: _Parcel) -> str:
    """Made up, since it has none: the parcel, its status and when it was last scanned."""
    awb = name_of(parcel.awb)
    if awb is None:
        return ""
    when = text_of(part_of(_last_scan(parcel), "date")) or text_of(parcel.current_timestamp)
    status = text_of(parcel.shipment_status_id) or _label(parcel)
    return name_of(f"{awb}:{status}:{when}") or ""


def _last_scan(parcel: _Parcel) -> object:
    """The latest; its dates sort as text."""
    scans = parts_of(parcel.scans)
    return max(scans, key=lambda scan: text_of(part_of(scan, "date")), default=None)


def _local_moment(value: object, utc_offset_minutes: int) -> float | None:
    try:
        moment = datetime.strptime(text_of(value).strip(), _TIME_FORMAT)
    except ValueError:
        return None
    return seconds_of(moment, utc_offset_minutes)
