"""A sender that configuration alone describes: it signs with an HMAC, in a way of its own."""

import re
from collections.abc import Sequence

import msgspec

from couponflow.config_sources import GenericSettings
from couponflow.messages import CHANNELS, MessageTypes, message_decoder
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.signatures import from_base64, from_hex, hmac_matches, refused_by_age
from couponflow.webhooks.sources.reading import called, peek, read

_PLACEHOLDER = re.compile(r"(\{(?:body|timestamp|id)\})")
_SECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_MESSAGE = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DOCUMENT: msgspec.json.Decoder[object] = msgspec.json.Decoder(object)


class GenericSource:
    """Verifies and translates as its settings say. Raises `ValueError` for those that cannot be."""

    methods = frozenset({"POST"})
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, name: str, settings: GenericSettings) -> None:
        if "{body}" not in settings.signed:
            raise ValueError(
                f"[generic_webhooks.{name}] signed must hold {{body}}, which is believed"
            )
        if settings.channel and settings.channel not in CHANNELS:
            raise ValueError(f"[generic_webhooks.{name}] channel must be one of {[*CHANNELS]}")
        self.name = f"generic/{name}"
        self._settings = settings
        self._secrets = [
            secret.encode("utf-8", "surrogateescape") for secret in settings.secrets if secret
        ]
        self._signed = [part for part in _PLACEHOLDER.split(settings.signed) if part]
        self._from_text = _from_any_hex if settings.encoding == "hex" else from_base64
        self._signature_header = settings.signature_header.lower()
        self._timestamp_header = settings.timestamp_header.lower()
        self._id_header = settings.id_header.lower()
        self._type_header = settings.type_header.lower()
        headers = (
            self._signature_header,
            self._timestamp_header,
            self._id_header,
            self._type_header,
        )
        signed_headers = {"{timestamp}": self._timestamp_header, "{id}": self._id_header}
        self._signed_headers = {
            placeholder: header
            for placeholder, header in signed_headers.items()
            if placeholder in self._signed
        }
        self.header_names = tuple(dict.fromkeys(filter(None, headers)))

    def verify(self, delivery: Delivery) -> Refused | None:
        given = delivery.headers.get(self._signature_header, "")
        signature = self._from_text(given.removeprefix(self._settings.prefix))
        if not signature or not given.startswith(self._settings.prefix):
            return Refused("bad-signature", f"{self._signature_header} is missing or garbled")
        timestamp = delivery.headers.get(self._timestamp_header, "")
        if self._timestamp_header and not _SECONDS.fullmatch(timestamp):
            return Refused("bad-signature", f"{self._timestamp_header} is missing or garbled")
        signed = self._signed_bytes(delivery)
        if signed is None:
            return Refused("bad-signature", "a header that is signed is missing or garbled")
        if not hmac_matches(self._secrets, signed, (signature,), self._settings.algorithm):
            return Refused("bad-signature", f"{self._signature_header} is of something else")
        if not self._timestamp_header:
            return None
        tolerance_seconds = self._settings.tolerance_seconds
        return refused_by_age(float(timestamp), delivery.received_at, tolerance_seconds)

    def identify(self, delivery: Delivery) -> Identity:
        settings = self._settings
        fields_wanted = settings.type_field or settings.id_field
        document = peek(_DOCUMENT, delivery.body) if fields_wanted else None
        headers = delivery.headers
        return Identity(
            called(headers.get(self._type_header, "") or _text_at(document, settings.type_field)),
            called(headers.get(self._id_header, "") or _text_at(document, settings.id_field)),
        )

    def public_query(self, delivery: Delivery) -> str:
        # Not signed, so anybody may add one.
        return ""

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        if not self._settings.channel:
            return ()
        body, field = event.body, self._settings.message_field
        if field:
            told = _value_at(read(_DOCUMENT, body), field)
            if told is None:
                raise EventUnreadable(f"It has no `{field}`")
            body = msgspec.json.encode(told)
        types = CHANNELS[self._settings.channel]
        return (Translated(read(message_decoder(types), _with_type(body, types))),)

    def _signed_bytes(self, delivery: Delivery) -> bytes | None:
        values = {"{body}": delivery.body}
        for placeholder, header in self._signed_headers.items():
            value = delivery.headers.get(header, "")
            if not value or not value.isascii():
                return None
            values[placeholder] = value.encode()
        return b"".join(values[part] if part in values else part.encode() for part in self._signed)


def _from_any_hex(text: str) -> bytes | None:
    """The bytes of hex digits, all in lower case or all in upper case."""
    return from_hex(text.lower() if text == text.upper() else text)


def _with_type(body: bytes, types: MessageTypes) -> bytes:
    """The message with a `type`: without one it is the channel's first."""
    said = read(_MESSAGE, body)
    if "type" in said:
        return body
    tag = msgspec.Raw(msgspec.json.encode(types[0].__struct_config__.tag))
    return msgspec.json.encode({"type": tag, **said})


def _value_at(document: object, path: str) -> object:
    """What is under a dotted path, None where there is nothing."""
    for name in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _text_at(document: object, path: str) -> str:
    value = _value_at(document, path) if path else None
    return str(value) if type(value) in (str, int) else ""
