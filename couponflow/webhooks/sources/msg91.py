"""MSG91's delivery reports: what became of SMS.

It signs nothing: the secret last part of its URL is all the proof there is. Its reports come in
four formats, of which one is designed by whoever sets it up, so that fields are looked for by
their names, wherever they are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qs

import msgspec

from couponflow.config_sources import Msg91Settings
from couponflow.messages import DeliveryState, SmsDeliveryReported
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.redaction import PHONE_NUMBER
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.reading import peek, read
from couponflow.webhooks.sources.tokens import (
    live_tokens,
    refused_by_token,
    without_tokens,
)
from couponflow.webhooks.sources.values import clipped, moment_of, name_of, text_of, uuid_of

_Field = Literal["request_id", "number", "status", "date", "reason", "description", "client_id"]
_Report = dict[_Field, str]

# Without case and underscores, as they differ from one format to the next.
_FIELDS: Mapping[str, _Field] = {
    "requestid": "request_id",
    "number": "number",
    "telnum": "number",
    "status": "status",
    "event": "status",
    "date": "date",
    "deliverytime": "date",
    "ts": "date",
    "failedreason": "reason",
    "failurereason": "reason",
    "desc": "description",
    "description": "description",
    "clientid": "client_id",
}
_LISTS = frozenset({"report", "data"})
"""What holds reports; what stands beside it is said of each of them."""
_DEPTH_MAX = 6

_STATES: Mapping[str, DeliveryState] = {
    "1": "delivered",
    "delivered": "delivered",
    "2": "failed",
    "failed": "failed",
    "9": "failed",
    "ndnc": "failed",
    "dnd": "failed",
    "16": "failed",
    "25": "failed",
    "rejected": "failed",
    "17": "failed",
    "blocked": "failed",
    "8": "sent",
    "sent": "sent",
    "submitted": "sent",
}
_PHONE_DIGITS_MIN = 7
_JSON: msgspec.json.Decoder[object] = msgspec.json.Decoder(object)


class Msg91Source:
    """Known by the token in its path."""

    name = "msg91"
    methods = frozenset({"POST"})
    header_names: Sequence[str] = ()
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, settings: Msg91Settings) -> None:
        self._tokens = live_tokens(settings.webhook_token)
        self._utc_offset_minutes = settings.utc_offset_minutes

    def verify(self, delivery: Delivery) -> Refused | None:
        return refused_by_token(self._tokens, [delivery.token])

    def identify(self, delivery: Delivery) -> Identity:
        try:
            reports = _reports_in(delivery.body)
        except EventUnreadable:
            return Identity()
        if len(reports) != 1:
            return Identity("batch" if reports else "")
        status = _status(reports[0])
        return Identity(_STATES.get(status) or name_of(status) or "", _event_id(reports[0]))

    def public_query(self, delivery: Delivery) -> str:
        return without_tokens(delivery.query)

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        return [
            Translated(message, _event_id(report))
            for report in _reports_in(event.body)
            if (message := self._message(report, event.received_at)) is not None
        ]

    def _message(self, report: _Report, received_at: float) -> SmsDeliveryReported | None:
        state = _STATES.get(_status(report))
        notification_id = uuid_of(report.get("client_id"))
        provider_message_id = name_of(report.get("request_id"))
        if state is None or not (notification_id or provider_message_id):
            return None
        occurred_at = moment_of(report.get("date"), self._utc_offset_minutes)
        return checked(
            SmsDeliveryReported(
                provider=self.name,
                state=state,
                notification_id=notification_id,
                provider_message_id=provider_message_id,
                reason=_reason(report) if state == "failed" else "",
                occurred_at=occurred_at or received_at,
            )
        )


def _reports_in(body: bytes) -> list[_Report]:
    """The reports in a body of any of its formats. Raises `EventUnreadable` when it is of none."""
    text = body.strip()
    if not text.startswith((b"{", b"[")):
        # Its form has one field.
        try:
            form = parse_qs(text.decode("utf-8", "replace"), max_num_fields=20)
        except ValueError as error:
            raise EventUnreadable("a form with too many fields") from error
        if "data" not in form:
            raise EventUnreadable("neither JSON nor a form with the field `data`")
        text = form["data"][0].encode()
    return _reports(read(_JSON, text), _DEPTH_MAX)


def _reports(node: object, depth: int) -> list[_Report]:
    if not depth:
        return []
    node = _unpacked(node)
    if isinstance(node, list):
        return [report for item in node for report in _reports(item, depth - 1)]
    if not isinstance(node, dict):
        return []
    beside = _fields(
        {key: value for key, value in node.items() if key.lower() not in _LISTS}, depth
    )
    held = [value for key, value in node.items() if key.lower() in _LISTS]
    within = [report for value in held for report in _reports(value, depth - 1)]
    return [beside | report for report in within] or ([beside] if beside else [])


def _fields(node: Mapping[object, object], depth: int) -> _Report:
    """The fields in an object, and those in objects within it that it does not have itself."""
    fields: _Report = {}
    for key, value in node.items():
        unpacked = _unpacked(value)
        if isinstance(unpacked, dict):
            nested = _fields(unpacked, depth - 1) if depth else {}
            fields = nested | fields
            continue
        field = _FIELDS.get(text_of(key).lower().replace("_", ""))
        text = text_of(unpacked).strip()
        if field is not None and text:
            fields.setdefault(field, text)
    return fields


def _unpacked(value: object) -> object:
    """JSON that is inside a string; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[", '"')):
        return value
    within = peek(_JSON, value.encode())
    return value if within is None else within


def _status(report: _Report) -> str:
    return report.get("status", "").lower()


def _event_id(report: _Report) -> str:
    """Made up, since it has none; a hash, as a phone number is part of it."""
    request_id = name_of(report.get("request_id"))
    if request_id is None:
        return ""
    parts = (request_id, report.get("number", ""), _status(report), report.get("date", ""))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _reason(report: _Report) -> str:
    """Why, in the operator's words, without the phone number, which is nobody else's business."""
    reason = report.get("reason") or report.get("description") or ""
    number = report.get("number", "")
    if len(number) >= _PHONE_DIGITS_MIN:
        reason = reason.replace(number, "...")
    return clipped(PHONE_NUMBER.sub("...", reason))
