from datetime import UTC, datetime, timedelta

import pytest

from couponflow.webhooks.event_filter import (
    ALL_REPLAYABLE,
    EventFilter,
    FilterInvalid,
    source_unknown,
)
from tests.samples import CLICKED_AT

NOW = datetime.fromtimestamp(CLICKED_AT, UTC)
ID = "01920000-0000-7000-8000-000000000000"


def test_a_description_says_what_was_asked_for_but_not_the_text() -> None:
    asked = EventFilter(
        source="stripe", event_id="evt_1", since=NOW, text="ann@shop.example", ids=("a", "b")
    )
    assert asked.describe() == (
        "source=stripe event_id=evt_1 since=2026-09-21T14:13:20+00:00 text=... ids=2"
    )
    assert EventFilter().describe() == "all events"
    assert ALL_REPLAYABLE.describe() == "status=replayable"


def test_what_goes_on_record_holds_no_text() -> None:
    asked = EventFilter(source="stripe", text="ann@shop.example")
    assert asked.on_record() == EventFilter(source="stripe", text="...")
    assert EventFilter(source="stripe").on_record() == EventFilter(source="stripe")


@pytest.mark.parametrize(
    ("asked", "part", "text"),
    [
        (EventFilter(ids=(ID, "evt_1")), "ids", "'evt_1' is no id of an event, which is a UUID"),
        (EventFilter(ids=("",)), "ids", "'' is no id"),
        (EventFilter(event_id=""), "event_id", "no sender"),
        (EventFilter(text=""), "text", "every event holds an empty text"),
        (EventFilter(since=NOW, until=NOW), "until", "end must be after the beginning"),
        (EventFilter(since=NOW, until=NOW - timedelta(1)), "until", "end must be after"),
    ],
)
def test_a_mistake_that_would_look_like_no_events_is_refused(
    asked: EventFilter, part: str, text: str
) -> None:
    with pytest.raises(FilterInvalid, match=text) as raised:
        asked.checked()
    assert raised.value.part == part


@pytest.mark.parametrize(
    "asked",
    [
        EventFilter(),
        EventFilter(ids=(ID, ID.upper())),
        EventFilter(since=NOW, until=NOW + timedelta(microseconds=1), text=" ", event_id=" "),
    ],
)
def test_what_can_be_meant_is_left_as_it_is(asked: EventFilter) -> None:
    assert asked.checked() is asked


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (EventFilter(source="stripe"), EventFilter(source="stripe", status="replayable")),
        (EventFilter(status="refused"), EventFilter(status="refused")),
        (EventFilter(ids=(ID,)), EventFilter(ids=(ID,))),
        (EventFilter(event_id="evt_1"), EventFilter(event_id="evt_1")),
    ],
)
def test_a_replay_leaves_out_what_was_neither_named_nor_asked_for_by_its_status(
    asked: EventFilter, meant: EventFilter
) -> None:
    assert asked.for_replay() == meant


def test_an_unknown_source_is_told_with_those_that_are_known() -> None:
    error = source_unknown("razorpey", ["stripe", "generic/shop", "razorpay"])
    assert error.part == "source"
    assert str(error).startswith("no source is called 'razorpey'")
    assert str(error).endswith("known are generic/shop, razorpay, stripe")
