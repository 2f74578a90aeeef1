"""Values in what senders wrote, any of which may be of any kind."""

from datetime import datetime, timedelta, timezone

from couponflow.kernel.identifiers import is_canonical_uuid
from couponflow.webhooks.sources.reading import called

_TEXT_MAX = 2_000
_MOMENT_BEFORE = 253_370_764_800
# Nothing here happens after the year 5138: a larger number counts milliseconds.
_SECONDS_BEFORE = 10**11


def text_of(value: object) -> str:
    """A JSON scalar as text; empty for null and for what has parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else ""


def name_of(value: object) -> str | None:
    """A scalar that can be a `Name`, without white space around it; None for anything else."""
    return called(text_of(value).strip()) or None


def part_of(value: object, name: str) -> object:
    """What an object has under a name; None where there is none, or no object."""
    return value.get(name) if isinstance(value, dict) else None


def parts_of(value: object) -> list[object]:
    """What a list holds; nothing where it is no list."""
    return value if isinstance(value, list) else []


def order_number_in(notes: object, *others: object) -> str | None:
    """The shop's own number of an order: the first that can be one, in notes, then of the others.

    Anybody may write anything into notes, and a payment is not lost for it.
    """
    for number in (part_of(notes, "order_id"), part_of(notes, "order_number"), *others):
        # To Python, true is a number.
        name = name_of(number) if type(number) in (str, int) else None
        if name is not None:
            return name
    return None


def uuid_of(value: object) -> str | None:
    """A UUID in its canonical text, None for anything else."""
    text = text_of(value)
    return text if is_canonical_uuid(text) else None


def clipped(value: object) -> str:
    """As much of a scalar as a `Text` holds."""
    text = text_of(value).replace("\0", "")[:_TEXT_MAX]
    # Half a character cannot be sent on.
    return text.encode("utf-8", "replace").decode()


def moment_of(value: object, utc_offset_minutes: int | None = None) -> float | None:
    """A time in seconds or milliseconds since the epoch, or in ISO 8601; None for anything else.

    One in ISO 8601 with no offset, neither in the text nor given here, could be any hour.
    """
    text = text_of(value).strip()
    if text.isascii() and text.isdigit():
        # One of 20 digits is none already; reading more of them would take long.
        number = int(text[:20])
        return _within_moments(number if number < _SECONDS_BEFORE else number / 1_000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return seconds_of(moment, utc_offset_minutes)


def seconds_of(moment: datetime, utc_offset_minutes: int | None) -> float | None:
    """Since the epoch; the offset is that of a moment which has none of its own."""
    if moment.tzinfo is None:
        if utc_offset_minutes is None:
            return None
        moment = moment.replace(tzinfo=timezone(timedelta(minutes=utc_offset_minutes)))
    return _within_moments(moment.timestamp())


def _within_moments(seconds: float) -> float | None:
    return seconds if 0 <= seconds < _MOMENT_BEFORE else None
