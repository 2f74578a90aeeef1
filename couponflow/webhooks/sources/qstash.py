"""Upstash QStash: what our other services publish to `/api/webhook`.

The body is `{"eventType": ..., "data": {...}, "timestamp": ...}`, where `type` and `payload` are
other names of the first two. A field of `data` has the name that the message has in
`couponflow.messages`, in snake_case or in camelCase (`amount_minor`, `amountMinor`). Money is in
whole minor units. A moment is in seconds or milliseconds since the epoch, or in ISO 8601 (UTC where
it says no offset); one that is missing is the body's `timestamp`, else the time of arrival.

- `command.checkout`: number, amount_minor, currency, [user_id, items, requested_at]
- `order.created`: number, amount_minor, currency, [user_id, items, payment_provider,
  provider_order_id, created_at]
- `notification.email`: to, subject, text, [html]
- `inventory.stock.updated`: sku, quantity, [reported_at]
- `analytics.audit`: actor, action, subject, [details]
- `analytics.metric`: name, value, [labels, measured_at]
- `analytics.dlq`: origin, reason, and message_json, or instead of that message, any JSON

Each of `items` has sku, quantity and unit_price_minor.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import Literal

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from couponflow.config_sources import QstashSettings
from couponflow.messages import (
    AuditReported,
    CheckoutRequested,
    EmailRequested,
    FailureReported,
    Message,
    MetricReported,
    OrderCreated,
    StockReported,
)
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.sources.checking import message_of
from couponflow.webhooks.sources.reading import called, peek, read
from couponflow.webhooks.sources.values import moment_of

_SIGNATURE = "upstash-signature"
_MESSAGE_ID = "upstash-message-id"

_MESSAGES: dict[str, type[Message]] = {
    "command.checkout": CheckoutRequested,
    "order.created": OrderCreated,
    "notification.email": EmailRequested,
    "inventory.stock.updated": StockReported,
    "analytics.audit": AuditReported,
    "analytics.metric": MetricReported,
    "analytics.dlq": FailureReported,
}
_MOMENTS = ("requested_at", "created_at", "reported_at", "measured_at")
# As some write numbers: an order's as one, and a count as `499.0`.
_NAMES = frozenset({"number", "sku", "provider_order_id"})
_COUNTS = frozenset({"amount_minor", "quantity", "unit_price_minor"})
_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")


class _Claims(msgspec.Struct):
    iss: Literal["Upstash"]
    sub: str
    exp: float
    nbf: float
    body: str


class _Named(msgspec.Struct):
    event_type: object = msgspec.field(name="eventType", default=None)
    type: object = None


class _Event(msgspec.Struct):
    data: dict[str, object] | None = None
    payload: dict[str, object] | None = None
    timestamp: object = None


_CLAIMS = msgspec.json.Decoder(_Claims)
_NAMED = msgspec.json.Decoder(_Named)
_EVENT = msgspec.json.Decoder(_Event)


class _Hs256(HMACAlgorithm):
    """Warns of no key: how long it is, is not for us to choose."""

    def __init__(self) -> None:
        super().__init__(HMACAlgorithm.SHA256)

    def check_key_length(self, key: bytes) -> str | None:
        return None


class QstashSource:
    """Verifies its JWT, whose life is compared with the time of arrival."""

    name = "qstash"
    methods = frozenset({"POST"})
    header_names = (_SIGNATURE, _MESSAGE_ID)
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, settings: QstashSettings) -> None:
        keys = settings.current_signing_key, settings.next_signing_key
        self._keys = [key.encode("utf-8", "surrogateescape") for key in keys if key]
        self._destination_urls = frozenset(settings.destination_urls)
        self._leeway_seconds = settings.leeway_seconds
        self._tokens = jwt.PyJWS(algorithms=[])
        self._tokens.register_algorithm("HS256", _Hs256())

    def verify(self, delivery: Delivery) -> Refused | None:
        claims = self._claims_of(delivery.headers.get(_SIGNATURE, ""))
        if claims is None:
            return Refused("bad-signature", f"{_SIGNATURE} is missing, of another key or garbled")
        digest = urlsafe_b64encode(hashlib.sha256(delivery.body).digest())
        # It comes with padding, which its own verifier does not insist on.
        if not hmac.compare_digest(claims.body.rstrip("=").encode(), digest.rstrip(b"=")):
            return Refused("bad-signature", f"{_SIGNATURE} is of another body")
        if self._destination_urls and claims.sub not in self._destination_urls:
            return Refused("bad-signature", f"{_SIGNATURE} is for another destination")
        if delivery.received_at >= claims.exp + self._leeway_seconds:
            return Refused("stale", f"expired {delivery.received_at - claims.exp:.0f} s ago")
        if delivery.received_at < claims.nbf - self._leeway_seconds:
            return Refused("stale", f"valid in {claims.nbf - delivery.received_at:.0f} s")
        return None

    def identify(self, delivery: Delivery) -> Identity:
        named = peek(_NAMED, delivery.body)
        return Identity(
            called(_event_type(named)) if named else "",
            called(delivery.headers.get(_MESSAGE_ID, "")),
        )

    def public_query(self, delivery: Delivery) -> str:
        # Not signed, so anybody may add one.
        return ""

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        event_type = _event_type(read(_NAMED, event.body))
        if not event_type:
            raise EventUnreadable("It has neither `eventType` nor `type`")
        message_type = _MESSAGES.get(event_type)
        if message_type is None:
            return ()
        return (Translated(_message(message_type, event)),)

    def _claims_of(self, token: str) -> _Claims | None:
        for key in self._keys:
            try:
                return _CLAIMS.decode(self._tokens.decode(token, key, algorithms=["HS256"]))
            except (jwt.PyJWTError, ValueError, RecursionError):
                continue
        return None


def _event_type(named: _Named) -> str:
    said = (named.event_type, named.type)
    return next((name for name in said if isinstance(name, str) and name), "")


def _message(message_type: type[Message], event: StoredEvent) -> Message:
    told = read(_EVENT, event.body)
    data = told.payload if told.data is None else told.data
    if data is None:
        raise EventUnreadable("It has neither `data` nor `payload`")
    fields = _snake_case(data)
    items = fields.get("items")
    if isinstance(items, list):
        fields["items"] = [_snake_case(item) if isinstance(item, dict) else item for item in items]
    for name in _MOMENTS:
        said = told.timestamp if fields.get(name) is None else fields[name]
        fields[name] = event.received_at if said is None else _seconds(said)
    if message_type is FailureReported and "message" in fields:
        fields.setdefault("message_json", msgspec.json.encode(fields["message"]).decode())
    return message_of(message_type, fields | {"type": message_type.__struct_config__.tag})


def _snake_case(fields: dict[str, object]) -> dict[str, object]:
    named = {_HUMP.sub(r"_\g<0>", name).lower(): value for name, value in fields.items()}
    return {name: _as_meant(name, value) for name, value in named.items()}


def _as_meant(name: str, value: object) -> object:
    """The value, unless it is but another spelling of what must be there."""
    if name in _NAMES and type(value) is int:
        return str(value)
    return _whole(value) if name in _COUNTS else value


def _whole(value: object) -> object:
    """499 for 499.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seconds(said: object) -> object:
    """Seconds since the epoch; what cannot be a moment is left for the message to refuse."""
    said = _whole(said)
    return said if isinstance(said, float) else moment_of(said, utc_offset_minutes=0)
