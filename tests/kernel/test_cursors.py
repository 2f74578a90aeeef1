import base64
from datetime import UTC, datetime

import pytest

from couponflow.kernel.cursors import CursorInvalid, cursor_after, place_of

MOMENT = datetime(2026, 9, 21, 14, 13, 20, 123_456, tzinfo=UTC)
ROW_ID = "01920000-0000-7000-8000-000000000000"


def test_a_cursor_leads_to_the_row_it_was_made_of() -> None:
    moment, row_id = place_of(cursor_after(MOMENT, ROW_ID), things="shops")
    assert (moment, str(row_id)) == (MOMENT, ROW_ID)


def test_a_list_without_a_cursor_begins_after_nothing() -> None:
    assert place_of(None, things="shops") == (None, None)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (ROW_ID, "none that a list of shops returned"),
        (f"yesterday {ROW_ID}", "none that a list of shops returned"),
        (f"{MOMENT.isoformat()} x", "none that a list of shops returned"),
        (f"2026-09-21T14:13:20 {ROW_ID}", "no time zone"),
    ],
)
def test_a_place_that_no_row_has_is_refused(place: str, reason: str) -> None:
    cursor = base64.urlsafe_b64encode(place.encode()).decode()
    with pytest.raises(CursorInvalid, match=f"{reason}.*; begin without"):
        place_of(cursor, things="shops")
