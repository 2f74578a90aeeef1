from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from couponflow.config import DatabaseSettings
from couponflow.kernel.database import Database, open_database
from couponflow.webhooks.contract import Refused
from couponflow.webhooks.refusals import WAITING_MAX, RefusalLog
from tests.kernel.outboxes import select, until_rows
from tests.webhooks.deliveries import REFUSALS, delivery, intake_parts

pytestmark = pytest.mark.once

FORGED = Refused("bad-signature", "it is of something else")
SOURCES = "select source, count(*)::int from webhook_logs group by source order by source"


def note(refusals: RefusalLog, source: str, times: int) -> int:
    """Note so many refusals; how many were logged."""
    with capture_logs() as logs:
        for number in range(times):
            refusals.note(source, delivery(f"guess {number}".encode()), FORGED)
    return len(logs)


async def test_so_many_a_minute_are_kept_of_each_source(database: Database) -> None:
    parts = intake_parts(database, per_minute=3)
    assert note(parts.refusals, "shop", 5) == 3
    assert note(parts.refusals, "mall", 2) == 2
    assert parts.metrics.refusals_unwritten == 2
    await parts.refusals.flush()
    assert await select(database, SOURCES) == [("mall", 2), ("shop", 3)]
    parts.clock.advance(59)
    assert note(parts.refusals, "shop", 1) == 0
    parts.clock.advance(1)
    assert note(parts.refusals, "shop", 4) == 3
    await parts.refusals.flush()
    assert await select(database, SOURCES) == [("mall", 2), ("shop", 6)]
    assert parts.metrics.refusals_unwritten == 4
    bodies = [row[6] for row in await select(database, REFUSALS)]
    assert bodies.count(b"guess 0") == 3


async def test_none_are_kept_where_none_are_wanted() -> None:
    parts = intake_parts(per_minute=0)
    assert note(parts.refusals, "shop", 3) == 0
    # There is nothing to write, and so nobody to write it to.
    await parts.refusals.flush()
    assert parts.metrics.refusals_unwritten == 3


async def test_the_log_says_when_it_falls_silent_and_shows_no_body() -> None:
    parts = intake_parts(per_minute=2)
    with capture_logs() as logs:
        for _ in range(3):
            parts.refusals.note("shop", delivery(b"hunter2", query="secret=hunter2"), FORGED)
    assert [entry["last_this_minute"] for entry in logs] == [False, True]
    assert "hunter2" not in repr(logs)


async def test_refusals_are_written_without_being_asked_for(database: Database) -> None:
    parts = intake_parts(database)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parts.refusals.run)
        note(parts.refusals, "shop", 2)
        await until_rows(database, SOURCES, ("shop", 2))
        note(parts.refusals, "shop", 1)
        await until_rows(database, SOURCES, ("shop", 3))
        tasks.cancel_scope.cancel()


async def test_without_postgresql_they_are_counted_and_given_up(tmp_path: Path) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    async with open_database(url, DatabaseSettings(connect_timeout_seconds=0.1)) as database:
        parts = intake_parts(database)
        note(parts.refusals, "shop", 4)
        with capture_logs() as logs:
            await parts.refusals.flush()
    assert parts.metrics.refusals_unwritten == 4
    (entry,) = [each for each in logs if each["event"] == "refusals not written"]
    assert entry["refusals"] == 4


@pytest.mark.parametrize("beyond", [1, 10])
async def test_no_more_than_so_many_wait_in_memory(beyond: int) -> None:
    parts = intake_parts(per_minute=WAITING_MAX)
    note(parts.refusals, "shop", WAITING_MAX - 1)
    note(parts.refusals, "mall", 1 + beyond)
    assert parts.metrics.refusals_unwritten == beyond
