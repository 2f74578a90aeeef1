"""SendGrid's event webhook: signed batches of what became of emails."""

from collections.abc import Iterator, Sequence

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from couponflow.config_sources import SendgridSettings
from couponflow.messages import DeliveryState, EmailDeliveryReported
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.signatures import from_base64, refused_by_age
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.reading import peek, read
from couponflow.webhooks.sources.values import (
    clipped,
    moment_of,
    name_of,
    text_of,
    uuid_of,
)

SIGNATURE_HEADER = "x-twilio-email-event-webhook-signature"
TIMESTAMP_HEADER = "x-twilio-email-event-webhook-timestamp"

_STATES: dict[str, DeliveryState] = {
    "processed": "sent",
    "deferred": "deferred",
    "delivered": "delivered",
    "bounce": "bounced",
    "dropped": "dropped",
    "spamreport": "complained",
}
_WITH_REASON: frozenset[DeliveryState] = frozenset({"deferred", "bounced", "failed", "dropped"})
_TIMESTAMP_DIGITS_MAX = 12


class _Kind(msgspec.Struct, frozen=True, gc=False):
    event: object = None


class _Event(msgspec.Struct, frozen=True, gc=False):
    """Of any kind throughout: custom arguments overwrite, and one odd event loses no other."""

    event: object = None
    type: object = None
    email: object = None
    timestamp: object = None
    reason: object = None
    response: object = None
    sg_event_id: object = None
    sg_message_id: object = None
    notification_id: object = None
    message_key: object = None


_KINDS = msgspec.json.Decoder(list[_Kind])
_BATCH = msgspec.json.Decoder(list[msgspec.Raw])
_EVENT = msgspec.json.Decoder(_Event)


class SendgridSource:
    """Verifies with any of the public keys; raises `ValueError` for what is none."""

    name = "sendgrid"
    methods = frozenset({"POST"})
    header_names = (SIGNATURE_HEADER, TIMESTAMP_HEADER)
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, settings: SendgridSettings) -> None:
        self._keys = [
            _public_key(text, place)
            for place, text in enumerate(settings.webhook_public_key, start=1)
            if text.strip()
        ]
        self._tolerance_seconds = settings.tolerance_seconds

    def verify(self, delivery: Delivery) -> Refused | None:
        timestamp = delivery.headers.get(TIMESTAMP_HEADER, "")
        if not (timestamp.isascii() and timestamp.isdigit()):
            return Refused("bad-signature", "its timestamp is no number")
        if len(timestamp) > _TIMESTAMP_DIGITS_MAX:
            return Refused("bad-signature", "its timestamp is too long")
        signature = from_base64(delivery.headers.get(SIGNATURE_HEADER, ""))
        if not signature:
            return Refused("bad-signature", "its signature is not base64")
        signed = timestamp.encode() + delivery.body
        if not any(_made_with(key, signature, signed) for key in self._keys):
            return Refused("bad-signature", "no key of ours verifies its signature")
        return refused_by_age(int(timestamp), delivery.received_at, self._tolerance_seconds)

    def identify(self, delivery: Delivery) -> Identity:
        batch = peek(_KINDS, delivery.body)
        if batch is None:
            return Identity()
        kinds = {name_of(told.event) or "" for told in batch}
        return Identity(kinds.pop() if len(kinds) == 1 else "batch")

    def public_query(self, delivery: Delivery) -> str:
        # Not signed, so anybody may add one.
        return ""

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        return [
            Translated(message, name_of(told.sg_event_id) or "")
            for told in _events(event.body)
            if (message := _message(told, event.received_at)) is not None
        ]


def _public_key(text: str, place: int) -> ec.EllipticCurvePublicKey:
    encoded = from_base64(text.strip())
    try:
        key = load_der_public_key(encoded or b"")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or not isinstance(key.curve, ec.SECP256R1)
        # One key, one spelling.
        or key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != encoded
    ):
        raise ValueError(
            f"webhook_public_key: number {place} is not a P-256 public key in base64"
            " (as SendGrid shows it, MFkwEwYH... and 124 characters long)"
        )
    return key


def _made_with(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _events(body: bytes) -> Iterator[_Event]:
    """The events of a batch that are objects. Raises `EventUnreadable` when it is no batch."""
    batch = read(_BATCH, body)
    readable = 0
    for raw in batch:
        told = peek(_EVENT, bytes(raw))
        if told is not None:
            readable += 1
            yield told
    if batch and not readable:
        raise EventUnreadable("a batch without a single object in it")


def _message(told: _Event, received_at: float) -> EmailDeliveryReported | None:
    """None for what is no delivery, and where nothing says whose it was."""
    state = _STATES.get(text_of(told.event))
    if state == "bounced" and told.type == "blocked":
        state = "failed"
    notification_id = uuid_of(told.notification_id) or uuid_of(told.message_key)
    provider_message_id = name_of(text_of(told.sg_message_id).partition(".")[0])
    if state is None or not (notification_id or provider_message_id):
        return None
    return checked(
        EmailDeliveryReported(
            provider=SendgridSource.name,
            state=state,
            notification_id=notification_id,
            provider_message_id=provider_message_id,
            reason=_reason(told) if state in _WITH_REASON else "",
            occurred_at=moment_of(told.timestamp) or received_at,
        )
    )


def _reason(told: _Event) -> str:
    """Why, in the far server's words, which often repeat the address; that is left out."""
    reason = text_of(told.reason) or text_of(told.response)
    email = text_of(told.email)
    return clipped(reason.replace(email, "...") if email else reason)
