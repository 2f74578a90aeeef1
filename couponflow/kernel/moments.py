"""Moments as people write them: a date, a time, or a while ago."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from msgspec import Meta

from couponflow.kernel.clock import Clock

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Moment = Annotated[datetime, Meta(tz=True)]


def parse_moment(text: str, clock: Clock) -> datetime:
    """A moment in ISO 8601 (UTC where it does not say), or as `2h`: so long ago; in UTC.

    Raises `ValueError` with a text that says how to write one.
    """
    try:
        if ago := _AGO.fullmatch(text):
            span = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            return datetime.fromtimestamp(clock.now(), UTC) - span
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{text!r} is no moment: write 2026-11-20, 2026-11-20T18:30:00Z, or 2h for 2 hours ago"
        ) from error
