"""The text of one CSV field turned into its value.

Each function adds to `problems` what is wrong, beginning with the column's name, and then returns
a neutral value: so a row is looked at as a whole and all its problems are reported at once.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from uuid import UUID

from couponflow.kernel.identifiers import is_canonical_uuid
from couponflow.links.tracking_template import TemplateInvalid, parse_template
from couponflow.links.web_url import url_problem

NETWORKS = ("admitad", "vcommission", "cuelinks", "cj")

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UUID_IN_SOME_FORM = re.compile(
    r"(?:urn:uuid:)?(\{)?([0-9a-f]{8}(-?)[0-9a-f]{4}\3[0-9a-f]{4}\3[0-9a-f]{4}\3[0-9a-f]{12})(?(1)\})"
)
# Line breaks and tabs are harmless in a title; the rest cannot be shown or stored.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PERCENT = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,2})?")
# Lone surrogates are bytes that were not UTF-8; the database is asked about addresses as text.
_EMAIL_PART = r"[^@\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+"
_EMAIL = re.compile(f"{_EMAIL_PART}@{_EMAIL_PART}")
_MOBILE = re.compile(r"\+?[0-9]{7,15}")
_MOBILE_PUNCTUATION = str.maketrans("", "", " -.()")
_BOOLEANS = {
    "": True,
    "true": True,
    "1": True,
    "yes": True,
    "false": False,
    "0": False,
    "no": False,
}
_MAX_EMAIL_CHARACTERS = 254
_MAX_CASHBACK_PERCENT = 100


def shown(text: str) -> str:
    """`text` in quotes, short and printable, whatever was in the file."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def uuid_field(column: str, text: str, problems: list[str]) -> str:
    """A UUID in canonical lower-case text; any standard form is taken."""
    if is_canonical_uuid(text):
        return text
    found = _UUID_IN_SOME_FORM.fullmatch(text.strip().lower())
    if found is None:
        problems.append(
            f"{column} {shown(text)} is not a UUID"
            if text.strip()
            else f"{column} is empty: every row needs its UUID"
        )
        return ""
    return str(UUID(found[2]))


def slug_field(column: str, text: str, problems: list[str]) -> str:
    """The short name of a merchant as it stands in links."""
    slug = text.strip()
    if not _SLUG.fullmatch(slug):
        problems.append(
            f"{column} {shown(text)} is not a slug: "
            "1 to 63 lower-case letters, digits and hyphens, not a hyphen first"
        )
        return ""
    return slug


def text_field(column: str, text: str, problems: list[str], *, max_characters: int) -> str:
    """Text for people without blanks around it; may be empty."""
    text = text.strip()
    if len(text) > max_characters:
        problems.append(
            f"{column} has {len(text):,} characters; at most {max_characters} are allowed"
        )
    if control := _CONTROL.search(text):
        problems.append(f"{column} holds the control character {control[0]!r}")
    return text


def required_text_field(column: str, text: str, problems: list[str], *, max_characters: int) -> str:
    """Text for people that must not be empty."""
    text = text_field(column, text, problems, max_characters=max_characters)
    if not text:
        problems.append(f"{column} is empty")
    return text


def url_field(column: str, text: str, problems: list[str]) -> str:
    """A web address, taken exactly as it is written."""
    if (problem := url_problem(text)) is not None:
        problems.append(f"{column} {problem}")
    return text


def fallback_url_field(column: str, text: str, problems: list[str]) -> str | None:
    """A web address that a shopper is sent to directly; empty for none."""
    if not text:
        return None
    url_field(column, text, problems)
    if not text.isascii():
        odd = next(character for character in text if not character.isascii())
        problems.append(f"{column} holds {odd!r}, which is not ASCII: percent-encode it")
    return text


def template_field(column: str, text: str, problems: list[str]) -> str:
    """A tracking template, checked as a whole."""
    try:
        parse_template(text)
    except TemplateInvalid as invalid:
        problems.append(f"{column} {invalid}")
    return text


def network_field(column: str, text: str, problems: list[str]) -> str:
    """One of the affiliate networks, in any case."""
    network = text.strip().lower()
    if network not in NETWORKS:
        problems.append(f"{column} {shown(text)} is not one of {', '.join(NETWORKS)}")
    return network


def time_field(column: str, text: str, problems: list[str]) -> datetime | None:
    """A moment in UTC, or None for an empty field."""
    text = text.strip()
    if not text:
        return None
    try:
        return _parse_time(text)
    except (ValueError, OverflowError):
        problems.append(
            f"{column} {shown(text)} is not an ISO 8601 time such as 2026-10-18T09:00:00+05:30"
        )
        return None


@lru_cache(maxsize=16_384)  # A file of a million offers holds few different moments.
def _parse_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def boolean_field(column: str, text: str, problems: list[str]) -> bool:
    """Yes or no; an empty field is yes."""
    value = _BOOLEANS.get(text)
    if value is None:
        value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        problems.append(f"{column} {shown(text)} is not true, false, yes, no, 1 or 0")
        return True
    return value


def percent_field(column: str, text: str, problems: list[str]) -> Decimal:
    """A share of 0 to 100 percent with at most two decimals."""
    text = text.strip()
    if _PERCENT.fullmatch(text):
        percent = Decimal(text)
        if percent <= _MAX_CASHBACK_PERCENT:
            return percent
    problems.append(
        f"{column} {shown(text)} is not a number from 0 to 100 with at most two decimals, "
        "such as 4.5"
    )
    return Decimal(0)


def email_field(column: str, text: str, problems: list[str]) -> str | None:
    """An e-mail address, or None for an empty field."""
    email = text.strip()
    if not email:
        return None
    if not _EMAIL.fullmatch(email):
        problems.append(f"{column} {shown(text)} is not an e-mail address")
        return None
    if len(email) > _MAX_EMAIL_CHARACTERS:
        problems.append(
            f"{column} has {len(email)} characters; at most {_MAX_EMAIL_CHARACTERS} are allowed"
        )
    return email


def mobile_field(column: str, text: str, problems: list[str]) -> str | None:
    """A telephone number without its blanks, hyphens, dots and brackets; None if empty."""
    mobile = text.translate(_MOBILE_PUNCTUATION).strip()
    if not mobile:
        return None
    if not _MOBILE.fullmatch(mobile):
        problems.append(
            f"{column} {shown(text)} is not a telephone number: 7 to 15 digits, '+' before them"
        )
        return None
    return mobile
