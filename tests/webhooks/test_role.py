from dataclasses import dataclass, replace

import anyio
import psycopg
import pytest
from structlog.testing import capture_logs

from couponflow.config import WebhooksSettings
from couponflow.config_sources import SourceSettings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.role import LAST_REFUSALS_SECONDS, WebhooksParts, webhooks_role
from tests.kernel.http_clients import exchange, new_listener
from tests.kernel.outboxes import select, until_rows
from tests.samples import PATIENCE_SECONDS, until
from tests.webhooks.deliveries import REFUSALS, Shop, counts
from tests.webhooks.routes import post

pytestmark = pytest.mark.once

WAITING = (
    "select count(*)::int from pg_locks where not granted and relation = 'webhook_logs'::regclass"
)


@dataclass(frozen=True, slots=True)
class Handle:
    """What a supervisor would give to the role."""

    stopping: anyio.Event
    has_started: anyio.Event

    def started(self) -> None:
        self.has_started.set()


def parts_on(database: Database, listener: Listener) -> WebhooksParts:
    """A role that only the shop calls."""
    clock = SystemClock()
    return WebhooksParts(
        settings=WebhooksSettings(),
        sources={"shop": Shop()},
        source_settings={"shop": SourceSettings()},
        cors={},
        trusted_proxies=(),
        listener=listener,
        database=database,
        database_connections=6,
        health=HealthBoard(clock),
        metrics=WebhookMetrics(),
        clock=clock,
    )


async def run(parts: WebhooksParts, handle: Handle) -> None:
    await webhooks_role(parts).run(handle)


async def test_what_was_taken_in_and_refused_is_written_by_the_stop(database: Database) -> None:
    listener = new_listener()
    handle = Handle(anyio.Event(), anyio.Event())
    parts = parts_on(database, listener)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, parts, handle)
            await handle.has_started.wait()
            assert (await exchange(listener, post())).status == 200
            assert (await exchange(listener, post(signed="forged"))).status == 401
            handle.stopping.set()
    assert await counts(database) == (1, 1, 1)
    assert len(await select(database, REFUSALS)) == 1


async def test_a_stop_does_not_wait_for_refusals_that_cannot_be_written(
    database: Database, database_url: str
) -> None:
    listener = new_listener()
    handle = Handle(anyio.Event(), anyio.Event())
    parts = parts_on(database, listener)
    with anyio.fail_after(PATIENCE_SECONDS), capture_logs() as logs:
        async with (
            await psycopg.AsyncConnection.connect(database_url) as connection,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(run, parts, handle)
            await handle.has_started.wait()
            await connection.execute("lock table webhook_logs in access exclusive mode")
            assert (await exchange(listener, post(signed="forged"))).status == 401
            await until_rows(database, WAITING, (1,))
            # This one comes while the other cannot be written.
            assert (await exchange(listener, post(signed="forged"))).status == 401
            stopped_at = anyio.current_time()
            handle.stopping.set()
    assert anyio.current_time() - stopped_at < LAST_REFUSALS_SECONDS + 3
    told = [entry for entry in logs if entry["event"] == "refusals not written"]
    assert [entry["error"] for entry in told] == ["the daemon stops, PostgreSQL is too slow"]
    assert await select(database, REFUSALS) == []


async def test_of_a_source_that_is_expected_but_off_the_alarm_says_so(database: Database) -> None:
    handle = Handle(anyio.Event(), anyio.Event())
    expected = SourceSettings(silence_seconds=3_600)
    parts = replace(
        parts_on(database, new_listener()), source_settings={"shop": expected, "mall": expected}
    )

    def told(name: str) -> str:
        return parts.health.snapshot().checks[f"webhook:{name}"].detail

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, parts, handle)
        await until(lambda: "webhook:mall" in parts.health.snapshot().checks)
        handle.stopping.set()
    assert told("mall").endswith("it is off here: it has no secret")
    assert told("shop").endswith("expected every 3600 s")
