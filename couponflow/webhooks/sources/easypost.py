"""EasyPost's webhook: where parcels are."""

import unicodedata
from collections.abc import Sequence

import msgspec

from couponflow.config_sources import EasypostSettings
from couponflow.messages import ShipmentReported, ShipmentState
from couponflow.webhooks.contract import (
    Delivery,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.signatures import from_hex, hmac_matches
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.parcels import directed
from couponflow.webhooks.sources.reading import peek, read
from couponflow.webhooks.sources.values import clipped, moment_of, name_of, part_of, parts_of

SIGNATURE_HEADER = "x-hmac-signature"
SIGNATURE_PREFIX = "hmac-sha256-hex="

# `error` says that EasyPost cannot find the parcel, which says nothing about the parcel.
_STATES: dict[str, ShipmentState] = {
    "pre_transit": "pre_transit",
    "in_transit": "in_transit",
    "out_for_delivery": "out_for_delivery",
    "available_for_pickup": "available_for_pickup",
    "failure": "failure",
    "delivered": "delivered",
    "return_to_sender": "return_to_sender",
    "cancelled": "cancelled",
}


class _Tracker(msgspec.Struct, frozen=True, kw_only=True):
    tracking_code: str
    status: str
    status_detail: object = None
    carrier: object = None
    tracking_details: object = None
    is_return: object = None
    updated_at: object = None


class _TrackerEvent(msgspec.Struct, frozen=True, kw_only=True):
    result: _Tracker
    created_at: object = None
    updated_at: object = None


class _Named(msgspec.Struct, frozen=True, gc=False):
    id: object = None
    description: object = None


_NAMED = msgspec.json.Decoder(_Named)
_TRACKER_EVENT = msgspec.json.Decoder(_TrackerEvent)


class EasypostSource:
    """Verifies with any of the secrets."""

    name = "easypost"
    methods = frozenset({"POST"})
    header_names = (SIGNATURE_HEADER,)
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, settings: EasypostSettings) -> None:
        self._secrets = [
            unicodedata.normalize("NFKD", secret).encode("utf-8", "surrogateescape")
            for secret in settings.webhook_secret
            if secret
        ]

    def verify(self, delivery: Delivery) -> Refused | None:
        header = delivery.headers.get(SIGNATURE_HEADER, "")
        if not header.startswith(SIGNATURE_PREFIX):
            return Refused("bad-signature", f"{SIGNATURE_HEADER} is not {SIGNATURE_PREFIX}...")
        signature = from_hex(header.removeprefix(SIGNATURE_PREFIX))
        if signature is None:
            return Refused("bad-signature", f"{SIGNATURE_HEADER} is not in hexadecimal")
        if not hmac_matches(self._secrets, delivery.body, [signature], "sha256"):
            return Refused("bad-signature", "no secret of ours makes its signature")
        return None

    def identify(self, delivery: Delivery) -> Identity:
        named = peek(_NAMED, delivery.body)
        if named is None:
            return Identity()
        return Identity(name_of(named.description) or "", name_of(named.id) or "")

    def public_query(self, delivery: Delivery) -> str:
        # Not signed, so anybody may add one.
        return ""

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        named = read(_NAMED, event.body)
        if not (name_of(named.description) or "").startswith("tracker."):
            return []
        told = read(_TRACKER_EVENT, event.body)
        tracker = told.result
        message = ShipmentReported(
            provider=self.name,
            tracking_code=tracker.tracking_code,
            carrier=name_of(tracker.carrier) or "",
            state=directed(_STATES.get(tracker.status, "unknown"), tracker.is_return),
            state_native=clipped(tracker.status),
            detail=clipped(tracker.status_detail),
            occurred_at=_occurred_at(told) or event.received_at,
        )
        return [Translated(checked(message))]


def _occurred_at(told: _TrackerEvent) -> float | None:
    """When the parcel was last seen, or EasyPost last wrote about it, whichever is later.

    Of two states at one scan the one that was written last is the later. An event's own
    `updated_at` is asked last, since delivering the event may move it.
    """
    written = (told.result.updated_at, told.created_at, told.updated_at)
    last_written = next(filter(None, (moment_of(text, 0) for text in written)), None)
    details = parts_of(told.result.tracking_details)
    seen = (moment_of(part_of(detail, "datetime"), 0) for detail in details)
    return max((moment for moment in (last_written, *seen) if moment is not None), default=None)
