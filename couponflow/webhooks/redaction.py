"""Showing what senders told us without the secrets and the personal data in it.

Values are masked by what they are called, however deep they lie, and free text goes through the
mask of our logs; in remarks, telephone numbers without a plus sign are masked as well. What cannot
be taken apart is not shown at all.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal
from urllib.parse import quote, unquote_plus

import msgspec

from couponflow.kernel.telemetry import scrub

REDACTED = "[redacted]"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Unmistakable wherever they stand in a name: `receipt_email`, `phonenumber`.
_STEMS = re.compile(
    "address|apikey|authoriz|birth|contact|cookie|email|firstname|forwarded|lastname|mobile"
    "|passw|phone|pincode|postal|postcode|recipient|referer|referrer|secret|signature|telnum|token|useragent"
    "|username|whatsapp|zipcode"
)
# Parts of other words, so they count alone: `click_user_ip`, but not `shipping`.
_WORD_ALONE = re.compile(
    "auth|bcc|card|cc|cvc|cvv|dob|iban|ifsc|ip|key|lat|lng|msisdn|otp|pan|pin|street|tel|upi|vpa"
    "|zip"
)
_WHOLE = re.compile(
    "accountnumber|body|countrycode|from|html|line|name|number|signedby|sourcebody|text|to"
)
# Whose `..._name` is nobody's.
_THING = re.compile(
    "action|advcampaign|advertiser|bank|campaign|carrier|channel|courier|endpoint|event|file|goal"
    "|merchant|offer|product|program|publisher|queue|schedule|site|store|topic|tracker|type|website"
)
# What is called so says why in somebody's words.
_REMARK = re.compile("desc|.*(?:description|reason).*")
# A day and its hour are ten digits as well.
_DAY = r"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9](?![0-9])"
PHONE_NUMBER = re.compile(rf"(?<![0-9])(?!{_DAY})\+?[0-9](?:[ -]?[0-9]){{9,14}}(?![0-9])")
"""In free text, with or without a plus sign."""
_PAIR = re.compile(r"""(?<![\w.\[\]-])([\w.\[\]-]++)=([^&\s"'<>]*)""")
_PARAMETER_NAME = re.compile(r"[\w.\[\]%+*~-]+")
_JSON_BEGINS = re.compile(r"""\s*[\[{]\s*["\[{]""")
# Exact: 1.10 stays 1.10.
_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")


class Payload(msgspec.Struct, frozen=True):
    """A body as it can be shown."""

    text: str
    form: Literal["json", "form", "text", "base64", "hidden"]
    """What the text is; hidden is what was neither JSON nor a form, and so is not in it."""


def is_private(name: str) -> bool:
    """Whether what is called so is a secret, or tells who or where somebody is."""
    words = [word.lower() for word in _WORD.findall(name)]
    joined = "".join(words)
    if _STEMS.search(joined) or "last4" in name.lower() or _WHOLE.fullmatch(joined):
        return True
    if any(_WORD_ALONE.fullmatch(word) for word in words):
        return True
    return len(words) > 1 and words[-1] == "name" and not _THING.fullmatch(words[-2])


def redact_body(body: bytes) -> Payload:
    """A body without what is private in it."""
    try:
        return Payload(_encoder.encode(_redacted(_decoder.decode(body))).decode(), "json")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    try:
        text = body.decode()
        pieces = text.split("&")
        if all(_is_parameter(piece) for piece in pieces):
            return Payload(redact_query(text), "form")
    except (UnicodeError, RecursionError):
        pass
    return Payload("", "hidden" if body else "text")


def redact_query(query: str) -> str:
    """A query string, or a form, without what is private in it; the rest is as it came."""
    return "&".join(_redacted_parameter(piece) for piece in query.split("&"))


def redact_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: REDACTED if is_private(name) else redact_text(value)
        for name, value in headers.items()
    }


def redact_text(text: str) -> str:
    """A text without what is private in it; it may be JSON, or a URL with parameters."""
    if _JSON_BEGINS.match(text):
        try:
            return _encoder.encode(_redacted(_decoder.decode(text))).decode()
        except (msgspec.DecodeError, UnicodeError):
            return REDACTED
    return _scrubbed(_PAIR.sub(_redacted_pair, text))


def _is_parameter(piece: str) -> bool:
    name, equals, _ = piece.partition("=")
    return bool(equals) and _PARAMETER_NAME.fullmatch(name) is not None


def _redacted(value: object) -> object:
    match value:
        case dict():
            return {_scrubbed(name): _redacted_value(name, each) for name, each in value.items()}
        case list():
            return [_redacted(each) for each in value]
        case str():
            return redact_text(value)
        case _:
            return value


def _redacted_value(name: str, value: object) -> object:
    if is_private(name):
        return _masked(value)
    if isinstance(value, list):
        return [_redacted_value(name, each) for each in value]
    return _redacted_text(name, value) if isinstance(value, str) else _redacted(value)


def _redacted_text(name: str, text: str) -> str:
    shown = redact_text(text)
    is_remark = _REMARK.fullmatch("".join(_WORD.findall(name)).lower())
    return PHONE_NUMBER.sub(REDACTED, shown) if is_remark else shown


def _masked(value: object) -> object:
    """All that is in a private value masked; what it consists of stays to be seen."""
    match value:
        case dict():
            return {_scrubbed(name): _masked(each) for name, each in value.items()}
        case list():
            return [_masked(each) for each in value]
        case None | bool() | "":
            return value
        case _:
            return REDACTED


def _redacted_parameter(piece: str) -> str:
    name, equals, value = piece.partition("=")
    if equals and value and is_private(unquote_plus(name)):
        return f"{name}={REDACTED}"
    given = unquote_plus(value if equals else name)
    clean = _redacted_text(unquote_plus(name), given)
    if clean == given:
        return piece
    shown = quote(clean, safe=' "*,/:@[]{}')
    return f"{name}={shown}" if equals else shown


def _redacted_pair(found: re.Match[str]) -> str:
    name, value = found.groups()
    return f"{name}={REDACTED}" if value and is_private(name) else found[0]


def _scrubbed(text: str) -> str:
    """The text as our logs would show it."""
    return str(scrub(None, "", {"text": text})["text"])
