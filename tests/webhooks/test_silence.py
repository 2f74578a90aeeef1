from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.database import Database, load_queries, open_database
from couponflow.kernel.health import HealthBoard
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.refusals import BODY_BYTES_KEPT
from couponflow.webhooks.silence import SilenceWatch
from couponflow.webhooks.store import RefusalRow, store_events, store_refusals
from tests.samples import until
from tests.webhooks.deliveries import event_row

pytestmark = pytest.mark.once

ROLE = "role:webhooks"
LONG_AGO = 1_600_000_000.0
"""2020-09-13 12:26:40 UTC: long ago by PostgreSQL's clock, too."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A watch and all that it tells."""

    watch: SilenceWatch
    database: Database
    clock: ManualClock
    health: HealthBoard
    metrics: WebhookMetrics

    async def look(self) -> list[tuple[str, str]]:
        """Look once; what is logged of it, and of which source."""
        with capture_logs() as logs:
            await self.watch.look()
        return [(entry["log_level"], entry["source"]) for entry in logs]

    def told(self, source: str) -> tuple[bool, str]:
        check = self.health.snapshot().checks[f"webhook:{source}"]
        return check.ok, check.detail

    async def hear(self, source: str, seconds_ago: float = 0.0) -> None:
        async with self.database.transaction() as connection:
            moment = self.clock.now() - seconds_ago
            await store_events(connection, [event_row(source=source, received_at=moment)])


def watched(
    database: Database, expected: Mapping[str, float], off: Collection[str] = ()
) -> Watched:
    clock, metrics = ManualClock(LONG_AGO), WebhookMetrics()
    health = HealthBoard(clock)
    health.report(ROLE, True)
    watch = SilenceWatch(expected, database, health, metrics, clock, off)
    return Watched(watch, database, clock, health, metrics)


async def test_a_source_never_heard_is_silent_since_the_process_began(database: Database) -> None:
    world = watched(database, {"shop": 60.0})
    assert await world.look() == []
    assert world.told("shop") == (True, "no event ever, in 0 s; expected every 60 s")
    world.clock.advance(60)
    assert await world.look() == []
    world.clock.advance(1)
    assert await world.look() == [("error", "shop")]
    assert world.told("shop") == (False, "no event ever, in 61 s; expected every 60 s")
    assert world.metrics.silence == {"shop": (61.0, True)}
    # That is for the operator to see to: the listener is as ready as before.
    health = world.health.snapshot((ROLE,))
    assert (health.status, health.checks["webhook:shop"].ok) == ("degraded", False)


async def test_of_a_source_that_is_off_that_is_said(database: Database) -> None:
    world = watched(database, {"shop": 60.0, "mall": 60.0}, off={"shop", "kiosk"})
    world.clock.advance(61)
    with capture_logs() as logs:
        await world.watch.look()
    why = "it is off here: it has no secret"
    assert world.told("shop") == (
        False,
        f"no event ever, in 61 s; expected every 60 s; {why}",
    )
    assert world.told("mall") == (False, "no event ever, in 61 s; expected every 60 s")
    assert {entry["source"]: entry.get("reason") for entry in logs} == {"shop": why, "mall": None}


async def test_a_silence_is_told_once_and_so_is_its_end(database: Database) -> None:
    world = watched(database, {"shop": 60.0, "mall": 60.0})
    await world.hear("shop", seconds_ago=100)
    await world.hear("mall", seconds_ago=10)
    assert await world.look() == [("error", "shop")]
    assert world.told("shop") == (
        False,
        "last event 2020-09-13 12:25:00 UTC, 100 s ago; expected every 60 s",
    )
    assert world.told("mall")[0]
    assert await world.look() == []
    await world.hear("shop")
    assert await world.look() == [("warning", "shop")]
    assert world.told("shop")[0]
    assert world.metrics.silence == {"shop": (0.0, False), "mall": (10.0, False)}
    # An event from a daemon whose clock is ahead of this one is no silence either.
    await world.hear("mall", seconds_ago=-30)
    await world.look()
    assert world.metrics.silence["mall"] == (0.0, False)
    world.clock.advance(91)
    assert sorted(await world.look()) == [("error", "mall"), ("error", "shop")]


async def test_an_event_dated_into_the_future_hides_no_silence(database: Database) -> None:
    world = watched(database, {"shop": 60.0, "mall": 60.0})
    world.clock.advance(int(SystemClock().now()) - LONG_AGO)
    await world.hear("shop", seconds_ago=100)
    for source in ("shop", "mall"):
        await world.hear(source, seconds_ago=-86_400)
    assert await world.look() == [("error", "shop"), ("error", "mall")]
    assert world.metrics.silence["shop"] == (100.0, True)
    assert world.told("mall")[1].startswith("no event ever")


async def test_the_last_event_is_found_however_much_was_refused_since(database: Database) -> None:
    world = watched(database, {"shop": 60.0})
    await world.hear("shop", seconds_ago=100)
    async with database.connection() as connection:
        await connection.execute(
            "insert into webhook_logs (id, received_at, source, event_type, event_id, verdict,"
            " method, query, headers, body, body_bytes, body_sha256, address)"
            " select gen_random_uuid(), to_timestamp(%s + i * 0.001), 'shop', '', '', 'stale',"
            " 'GET', '', '{}', '', 0, sha256(''), '' from generate_series(1, 10000) i",
            [LONG_AGO],
        )
        cursor = await connection.execute(
            b"explain (analyze, buffers, format json) " + load_queries("webhooks")["latest_events"],
            {"sources": ["shop", "mall"]},
        )
        (((explained,),),) = await cursor.fetchall()
    plan = explained["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 20, explained
    assert await world.look() == [("error", "shop")]
    assert world.metrics.silence["shop"] == (100.0, True)


async def test_what_is_not_believed_breaks_no_silence(database: Database) -> None:
    world = watched(database, {"shop": 60.0})
    world.clock.advance(61)
    event = event_row()
    refusal = RefusalRow(
        webhook_id=event.webhook_id,
        received_at=world.clock.now(),
        source="shop",
        verdict="bad-signature",
        detail="",
        method="POST",
        query="",
        body=b"x" * BODY_BYTES_KEPT,
        body_bytes=BODY_BYTES_KEPT,
        body_sha256=event.body_sha256,
        address="192.0.2.7",
    )
    async with database.transaction() as connection:
        await store_refusals(connection, [refusal])
    assert await world.look() == [("error", "shop")]


async def test_nothing_is_said_of_sources_of_which_nothing_is_expected(database: Database) -> None:
    world = watched(database, {"shop": 0.0, "mall": 60.0})
    await world.look()
    assert [*world.health.snapshot().checks] == [ROLE, "webhook:mall"]
    assert [*world.metrics.silence] == ["mall"]
    # Where nothing at all is expected there is nothing to run for.
    with anyio.fail_after(5):
        await watched(database, {"shop": 0.0}).watch.run()


async def test_it_looks_again_and_again(database: Database) -> None:
    # The shortest of the silences is also how often it looks.
    world = watched(database, {"shop": 0.01})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.watch.run)
        await until(lambda: "shop" in world.metrics.silence)
        assert not world.metrics.silence["shop"][1]
        world.clock.advance(1)
        await until(lambda: world.metrics.silence["shop"][1])
        tasks.cancel_scope.cancel()


async def test_it_goes_on_while_postgresql_is_away(tmp_path: Path) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    settings = DatabaseSettings(connect_timeout_seconds=0.02)
    with capture_logs() as logs:
        async with open_database(url, settings) as database, anyio.create_task_group() as tasks:
            world = watched(database, {"shop": 0.01})
            tasks.start_soon(world.watch.run)
            await until(
                lambda: [entry["event"] for entry in logs].count("silence not looked for") > 1
            )
            tasks.cancel_scope.cancel()
    assert [*world.health.snapshot().checks] == [ROLE]
