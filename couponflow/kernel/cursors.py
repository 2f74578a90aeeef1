"""Where the next page of a list begins, as an opaque text: after a row's moment and id."""

import base64
import binascii
import uuid
from datetime import datetime


class CursorInvalid(ValueError):
    """A cursor was given that no list ever returned. Begin at the first page, without one."""


def cursor_after(moment: datetime, row_id: str) -> str:
    """The cursor of the page that begins after this row."""
    place = f"{moment.isoformat()} {row_id}"
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def place_of(cursor: str | None, *, things: str) -> tuple[datetime | None, uuid.UUID | None]:
    """The moment and id that a page begins after; neither without a cursor.

    Raises `CursorInvalid`, which calls what is listed `things`.
    """
    if cursor is None:
        return None, None
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        moment, row_id = base64.b64decode(padded, b"-_", validate=True).decode().split(" ")
        place = datetime.fromisoformat(moment), uuid.UUID(row_id)
    except (binascii.Error, ValueError) as error:
        raise CursorInvalid(
            f"the cursor is none that a list of {things} returned; begin without one"
        ) from error
    if place[0].tzinfo is None:
        raise CursorInvalid("the cursor's moment has no time zone; begin without a cursor")
    return place
