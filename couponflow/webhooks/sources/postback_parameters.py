"""The parameters of a postback: from a query, a form or JSON, and what their values say."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from couponflow.webhooks.contract import EventUnreadable
from couponflow.webhooks.sources.reading import peek, read
from couponflow.webhooks.sources.values import text_of

T = TypeVar("T")

_FIELDS_MAX = 1_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Numbers as they are written, since amounts are kept exactly.
_OBJECT = msgspec.json.Decoder(dict[str, object], float_hook=str)
_OBJECTS = msgspec.json.Decoder(dict[str, object] | list[dict[str, object]], float_hook=str)

# A macro that the network did not know, or had no value for, comes as it was written.
_ABSENT = re.compile(r"|null|none|\[\[\[.*\]\]\]|\{+[^{}]*\}+|!!!.*!!!", re.IGNORECASE | re.DOTALL)
_FOLDED = re.compile(r"[-_\s]+")
_INTEGER_DIGITS_MAX = 15
_LAST_PLACE = Decimal("0.000001")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
# Groups of three, and in India of two before the last one. `124,95` is none: its comma may as well
# be that of a fraction.
_GROUPED = re.compile(r"-?[0-9]{1,3}(?:[, \xa0][0-9]{2,3})*[, \xa0][0-9]{3}(?:\.[0-9]+)?")
_SEPARATOR = re.compile(r"[, \xa0]")
_AMOUNT_CHARACTERS_MAX = 64
_CURRENCY = re.compile(r"[A-Za-z]{3}")


def parameters_of(query: str, content_type: str, body: bytes) -> dict[str, str]:
    """All parameters of a postback; the first of a name counts, the body's before the query's.

    Raises `EventUnreadable` for JSON that is not one object, or too many parameters.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK).strip()
    if "json" in content_type.lower() or body.startswith((b"{", b"[")):
        return _first_of([*_json(body), *_form(query)]) if body else _first_of(_form(query))
    return _first_of([*_form(body.decode("utf-8", "replace")), *_form(query)])


def present(parameters: Mapping[str, str], names: Iterable[str]) -> str:
    """What the first of the parameters says that says something; empty where none does."""
    for name in names:
        text = parameters.get(name, "").strip()
        # It may have been encoded twice.
        if not (_ABSENT.fullmatch(text) or _ABSENT.fullmatch(unquote(text))):
            return text
    return ""


def folded(text: str) -> str:
    """A status as statuses are compared: without case, and hyphens and underscores as spaces."""
    return _FOLDED.sub(" ", text).strip().lower()


def amount(text: str) -> str | None:
    """An amount as a `DecimalText`, which keeps six places; None for what cannot be one."""
    if len(text) > _AMOUNT_CHARACTERS_MAX:
        return None
    if _GROUPED.fullmatch(text):
        text = _SEPARATOR.sub("", text)
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    if number.adjusted() >= _INTEGER_DIGITS_MAX:
        return None
    plain = format(number, "f")
    if not _DECIMAL.fullmatch(plain):
        plain = format(number.quantize(_LAST_PLACE), "f")
    return plain if _DECIMAL.fullmatch(plain) else None


def currency(text: str) -> str | None:
    """An ISO 4217 code, None for what cannot be one."""
    return text.upper() if _CURRENCY.fullmatch(text) else None


def _first_of(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    first: dict[str, str] = {}
    for name, text in pairs:
        first.setdefault(name, text)
    return first


def _form(text: str) -> list[tuple[str, str]]:
    """The fields of a form or query, and those of the objects that they hold as JSON."""
    try:
        pairs = parse_qsl(text, max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise EventUnreadable("more parameters than any network sends") from error
    held = [
        (name, text_of(value))
        for _, text in pairs
        if text.startswith("{")
        for name, value in (peek(_OBJECT, text.encode("utf-8", "replace")) or {}).items()
    ]
    return pairs + held


def _json(body: bytes) -> list[tuple[str, str]]:
    decoded = read(_OBJECTS, body)
    if isinstance(decoded, list):
        if len(decoded) != 1:
            raise EventUnreadable("a list of postbacks, where one is sent at a time")
        decoded = decoded[0]
    return [(name, text_of(value)) for name, value in decoded.items()]
