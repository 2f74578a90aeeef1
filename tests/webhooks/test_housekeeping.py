from datetime import UTC, datetime
from pathlib import Path
from typing import LiteralString

import anyio
import pytest
from structlog.testing import capture_logs

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.database import Database, load_queries, open_database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox import publish
from couponflow.messages import AuditReported, WebhookAccepted
from couponflow.webhooks import housekeeping
from couponflow.webhooks.housekeeping import Housekeeping
from couponflow.webhooks.store import store_events
from tests.kernel.outboxes import select, until_rows
from tests.samples import until
from tests.webhooks.deliveries import event_row

pytestmark = pytest.mark.once

NOON = datetime(2020, 9, 21, 12, tzinfo=UTC).timestamp()
"""Long ago by PostgreSQL's clock, too."""
DAY_SECONDS = 86_400.0
PARTITIONS = (
    "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid"
    " where i.inhparent = 'webhook_logs'::regclass order by 1"
)
OTHER = ("webhook_logs_other",)
IDS = Uuid7Generator()
KNOWN = "select event_id from webhook_events order by event_id"


def partitions(*days: int) -> list[tuple[str]]:
    return [*((f"webhook_logs_2020_09_{day}",) for day in days), OTHER]


async def store(database: Database, *days: int) -> None:
    """An event at noon of each day of September."""
    moments = [NOON + (day - 21) * DAY_SECONDS for day in days]
    async with database.transaction() as connection:
        await store_events(connection, [event_row(received_at=moment) for moment in moments])


async def execute(database: Database, statement: LiteralString, *values: object) -> None:
    async with database.connection() as connection:
        await connection.execute(statement, values)


async def forget(database: Database, source: str = "shop", **days_ago: int) -> None:
    """Let ids have been taken so long ago."""
    for event_id, days in days_ago.items():
        await execute(
            database,
            "insert into webhook_events values"
            " (%s, %s, gen_random_uuid(), now() - %s * interval '1 day')",
            *(source, event_id, days),
        )


async def test_this_day_and_those_to_come_have_partitions(database: Database) -> None:
    clock = ManualClock(NOON)
    keeping = Housekeeping(database, clock, keep_days=0, dedup_days=45)
    await keeping.ensure_partitions()
    assert await select(database, PARTITIONS) == partitions(*range(21, 29))
    clock.advance(DAY_SECONDS)
    await keeping.ensure_partitions()
    await keeping.ensure_partitions()
    assert await select(database, PARTITIONS) == partitions(*range(21, 30))
    await store(database, 21, 29, 30)
    counted = "select (select count(*) from webhook_logs_2020_09_29), count(*)"
    assert await select(database, f"{counted} from webhook_logs_other") == [(1, 1)]
    # They are all kept for ever where that is wanted.
    clock.advance(3_650 * DAY_SECONDS)
    await keeping.let_go()
    assert await select(database, PARTITIONS) == partitions(*range(21, 30))


async def test_days_that_are_old_enough_go_with_their_events(database: Database) -> None:
    clock = ManualClock(NOON)
    keeping = Housekeeping(database, clock, keep_days=3, dedup_days=45)
    await store(database, 1)
    await keeping.ensure_partitions()
    await store(database, 21, 22, 23)
    clock.advance(4 * DAY_SECONDS)
    # Those whose messages wait must be read yet.
    await keeping.let_go()
    assert await select(database, PARTITIONS) == partitions(*range(21, 29))
    await execute(database, "delete from outbox where published_at < '2020-09-23'")
    await keeping.let_go()
    # It is noon of the 25th: what came on the 22nd before noon is old enough, the rest is not.
    assert await select(database, PARTITIONS) == partitions(*range(22, 29))
    left = await select(
        database, "select extract(day from received_at)::int from webhook_logs order by received_at"
    )
    # What got into the partition for what has none stays, too.
    assert left == [(1,), (22,), (23,)]


async def test_a_day_whose_event_is_replayed_stays(database: Database) -> None:
    clock = ManualClock(NOON)
    keeping = Housekeeping(database, clock, keep_days=3, dedup_days=45)
    await keeping.ensure_partitions()
    await store(database, 21, 22, 23)
    await execute(database, "delete from outbox")
    # Published now, long after its event.
    moment = NOON + DAY_SECONDS
    message = WebhookAccepted(webhook_id=IDS.make(moment), source="shop", received_at=moment)
    async with database.transaction() as connection:
        await publish(
            connection,
            message,
            dedup_key=f"replay:{message.webhook_id}",
            correlation_id=message.webhook_id,
        )
        # Of another kind is what tells of no event.
        await publish(connection, AuditReported(actor="a", action="b", subject="c"))
    clock.advance(30 * DAY_SECONDS)
    await keeping.let_go()
    assert await select(database, PARTITIONS) == partitions(*range(22, 29))
    await execute(database, "delete from outbox where dedup_key is not null")
    await keeping.let_go()
    assert await select(database, PARTITIONS) == [OTHER]


async def test_a_daemon_whose_clock_is_ahead_drops_no_day(database: Database) -> None:
    ahead = ManualClock(SystemClock().now() + 100 * DAY_SECONDS)
    await Housekeeping(database, SystemClock(), keep_days=90, dedup_days=45).ensure_partitions()
    made = await select(database, PARTITIONS)
    assert len(made) == 9
    await Housekeeping(database, ahead, keep_days=90, dedup_days=45).let_go()
    assert await select(database, PARTITIONS) == made


async def test_old_ids_are_forgotten_however_many_there_are(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = Housekeeping(database, ManualClock(), keep_days=0, dedup_days=45)
    await forget(database, young_1=44, young_2=0)
    for at_once in (1, 3, 5_000):
        monkeypatch.setattr(housekeeping, "PRUNE_EVENTS", at_once)
        await forget(database, old_1=46, old_2=47, old_3=1_000)
        await forget(database, "mall", **{f"old_{days}": days for days in range(46, 56)})
        await forget(database, "mall", young=1)
        await keeping.let_go()
        assert await select(database, KNOWN) == [("young",), ("young_1",), ("young_2",)]
        await execute(database, "delete from webhook_events where source = 'mall'")


async def test_the_newest_event_of_a_source_is_known_for_ever(database: Database) -> None:
    keeping = Housekeeping(database, ManualClock(), keep_days=0, dedup_days=45)
    await forget(database, "shop", oldest=900, newest_of_shop=800, of_tomorrow=-1)
    await forget(database, "mall", newest_of_mall=46, older=47)
    await keeping.let_go()
    known = [("newest_of_mall",), ("newest_of_shop",), ("of_tomorrow",)]
    assert await select(database, KNOWN) == known


async def test_old_ids_are_found_by_the_index_wherever_they_are(database: Database) -> None:
    """New rows go to the places of pruned ones, so age and place have nothing to do with each
    other."""
    await execute(
        database,
        "insert into webhook_events select 'shop', i::text, gen_random_uuid(),"
        " now() - mod(i * 7919, 40000) * interval '2 minutes' from generate_series(1, 40000) i",
    )
    await execute(database, "analyze webhook_events")
    async with database.connection() as connection:
        cursor = await connection.execute(
            b"explain " + load_queries("webhooks")["prune_events"], {"days": 45, "limit": 5_000}
        )
        plan = "\n".join(row[0] for row in await cursor.fetchall())
    assert "Seq Scan" not in plan, plan
    assert plan.count("webhook_events_source") >= 2, plan


async def test_house_is_kept_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "INTERVAL_SECONDS", 0.01)
    clock = ManualClock(NOON)
    keeping = Housekeeping(database, clock, keep_days=1, dedup_days=45)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeping.run)
        await until_rows(database, PARTITIONS, *partitions(*range(21, 29)))
        await forget(database, old=46, young=0)
        await until_rows(database, KNOWN, ("young",))
        clock.advance(2 * DAY_SECONDS)
        await until_rows(database, PARTITIONS, *partitions(*range(22, 31)))
        tasks.cancel_scope.cancel()


async def test_without_postgresql_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "AGAIN_SECONDS", 0.01)
    url = f"postgresql://someone@/shop?host={tmp_path}"
    settings = DatabaseSettings(connect_timeout_seconds=0.02)
    with capture_logs() as logs:
        async with open_database(url, settings) as database, anyio.create_task_group() as tasks:
            tasks.start_soon(Housekeeping(database, ManualClock(), 90, 45).run)
            await until(
                lambda: [entry["event"] for entry in logs].count("webhook tables not kept yet") > 1
            )
            tasks.cancel_scope.cancel()
