from datetime import UTC, datetime, timedelta

import pytest

from couponflow.kernel.clock import ManualClock
from couponflow.kernel.moments import parse_moment

NOW = datetime.fromtimestamp(ManualClock().now(), UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T18:30:00Z", datetime(2026, 11, 20, 18, 30, tzinfo=UTC)),
        ("2026-11-20T18:30:00+05:30", datetime(2026, 11, 20, 13, tzinfo=UTC)),
        ("2h", NOW - timedelta(hours=2)),
        ("3w", NOW - timedelta(weeks=3)),
    ],
)
def test_a_moment_is_a_time_or_a_while_ago(text: str, moment: datetime) -> None:
    parsed = parse_moment(text, ManualClock())
    assert (parsed, parsed.tzinfo) == (moment, UTC)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2x", "-2h", "999999w", "0001-01-01T00:00:00+05:30"]
)
def test_what_is_no_moment_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="is no moment: write 2026-11-20"):
        parse_moment(text, ManualClock())
