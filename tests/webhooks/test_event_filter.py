from datetime import UTC, datetime

from couponflow.webhooks.event_filter import ALL_VERIFIED, EventFilter
from tests.samples import CLICKED_AT

NOW = datetime.fromtimestamp(CLICKED_AT, UTC)


def test_a_description_says_what_was_asked_for_but_not_the_text() -> None:
    asked = EventFilter(source="stripe", since=NOW, text="ann@shop.example", ids=("a", "b"))
    assert asked.describe() == "source=stripe since=2026-09-21T14:13:20+00:00 text=... ids=2"
    assert EventFilter().describe() == "all events"
    assert ALL_VERIFIED.describe() == "status=verified"
