import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.migrations import migrate
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.writer import EventWriter
from tests.kernel.outboxes import WORKER, claim, register, select
from tests.postgres_server import PostgresServer
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, rows_of
from tests.webhooks.deliveries import Submissions, counts, event_row, event_writer, writing

pytestmark = pytest.mark.once

TRANSACTIONS = "select count(distinct xmin::text) from webhook_logs"


@asynccontextmanager
async def nothing_can_be_written(url: str) -> AsyncIterator[None]:
    """Whoever writes an event during the block waits for its end."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("lock table webhook_events in access exclusive mode")
        yield


async def writers_waiting(url: str) -> int:
    """How many writers wait for the table that somebody has locked."""
    ((count,),) = await rows_of(url, "select count(*)::int from pg_locks where not granted")
    assert isinstance(count, int)
    return count


async def until_a_writer_waits(url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not await writers_waiting(url):  # noqa: ASYNC110 - PostgreSQL sets no event
            await anyio.sleep(POLL_SECONDS)


async def keep_busy(url: str, submissions: Submissions, writers: int) -> None:
    """Submit events until all writers wait for the table."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while await writers_waiting(url) < writers:
            submissions.add(event_row())
            await anyio.sleep(POLL_SECONDS)


async def test_events_of_concurrent_requests_share_transactions(database: Database) -> None:
    writer = event_writer(database)
    answered: list[str] = []

    async def sender() -> None:
        for _ in range(5):
            answered.extend(await Submissions(writer).ask(event_row()))

    async with writing(writer), anyio.create_task_group() as senders:
        for _ in range(100):
            senders.start_soon(sender)
    assert answered == ["accepted"] * 500
    assert await counts(database) == (500, 500, 500)
    ((transactions,),) = await select(database, TRANSACTIONS)
    assert isinstance(transactions, int)
    assert 1 < transactions < 125
    large = [event_row(body=bytes([number]) * 1_048_576) for number in range(12)]
    async with writing(writer):
        assert await Submissions(writer).ask(*large) == ["accepted"] * 12


async def test_an_event_alone_takes_one_transaction(database: Database) -> None:
    metrics = WebhookMetrics()
    writer = event_writer(database, metrics=metrics)
    submissions = Submissions(writer)
    async with writing(writer, writers=3):
        for _ in range(10):
            assert await submissions.ask(event_row()) == ["accepted"]
    assert metrics.batches == 10


async def test_an_event_is_stored_as_it_came_with_its_message(database: Database) -> None:
    writer = event_writer(database)
    row = event_row(
        received_at=1_600_000_000.123456,
        body=b"\0\xff",
        query="a=%20b",
        headers='{"x-a": "1"}',
        method="GET",
        event_type="é",
    )
    async with writing(writer):
        assert await Submissions(writer).ask(row) == ["accepted"]
    logged = await select(
        database,
        "select id::text, extract(epoch from received_at)::float8, source, event_type, event_id,"
        " verdict, detail, method, query, headers, body, body_bytes, body_sha256, address"
        " from webhook_logs",
    )
    assert logged == [
        (
            *(row.webhook_id, row.received_at, row.source, "é", row.event_id, "verified", ""),
            *("GET", "a=%20b", {"x-a": "1"}, b"\0\xff", 2, row.body_sha256, row.address),
        )
    ]
    queued = await select(
        database,
        "select id::text, channel, message::text, correlation_id,"
        " extract(epoch from published_at)::float8, available_at = published_at from outbox",
    )
    assert queued == [
        (row.webhook_id, "webhooks", row.message, row.webhook_id, row.received_at, True)
    ]


async def test_a_message_does_not_wait_for_a_clock_that_was_ahead(database: Database) -> None:
    writer = event_writer(database)
    tomorrow = SystemClock().now() + 86_400
    async with writing(writer):
        assert await Submissions(writer).ask(event_row(received_at=tomorrow)) == ["accepted"]
    await register(database, WORKER)
    (claimed,) = await claim(database, channel="webhooks")
    assert claimed.published_at == pytest.approx(tomorrow, abs=0.001)


async def test_a_duplicate_is_told_so_and_leaves_nothing(database: Database) -> None:
    writer = event_writer(database)
    submissions = Submissions(writer)
    async with writing(writer):
        together = await submissions.ask(*(event_row("one") for _ in range(5)))
        assert sorted(together) == ["accepted", *["duplicate"] * 4]
        later = await submissions.ask(event_row("one"), event_row("two"))
        assert later == ["duplicate", "accepted"]
        elsewhere = await submissions.ask(event_row("one", source="another shop"))
        assert elsewhere == ["accepted"]
    assert await counts(database) == (3, 3, 3)


@pytest.mark.parametrize("seed", range(2))
async def test_the_same_events_at_two_daemons_in_any_order_are_taken_once(
    database: Database, database_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    told: list[str] = []

    async def daemon(writer: EventWriter) -> None:
        events = [*range(300), *range(100)]
        chance.shuffle(events)
        submissions = Submissions(writer)
        while events:
            size = chance.randint(1, 80)
            submissions.add(*(event_row(f"event {number}") for number in events[:size]))
            del events[:size]
            await anyio.lowlevel.checkpoint()
        told.extend(await submissions.told())

    async with open_database(database_url, DatabaseSettings()) as other:
        writers = event_writer(database), event_writer(other)
        async with writing(writers[0]), writing(writers[1]), anyio.create_task_group() as daemons:
            for writer in writers:
                daemons.start_soon(daemon, writer)
    assert sorted(told) == ["accepted"] * 300 + ["duplicate"] * 500
    assert await counts(database) == (300, 300, 300)


REFUSED: list[dict[str, Any]] = [
    {"event_type": "nul\0"},
    {"event_id": "nul\0"},
    {"source": ""},
    {"headers": "{"},
    {"method": "PUT"},
    {"webhook_id": "no id"},
    {"body_sha256": b"short"},
]


async def test_an_event_that_postgresql_refuses_takes_no_other_along(database: Database) -> None:
    writer = event_writer(database)
    async with writing(writer, writers=1):
        for changes in REFUSED:
            good, bad = [event_row() for _ in range(4)], event_row(**changes)
            told = await Submissions(writer).ask(*good[:2], bad, *good[2:])
            assert told == ["accepted", "accepted", "unavailable", "accepted", "accepted"], changes
        assert await Submissions(writer).ask(event_row()) == ["accepted"]
    assert await counts(database) == (4 * len(REFUSED) + 1,) * 3


async def test_while_postgresql_is_away_events_are_refused_in_time(
    stoppable_postgres: PostgresServer,
) -> None:
    url = stoppable_postgres.url
    await migrate(url)
    async with open_database(url, DatabaseSettings()) as database:
        writer = event_writer(database, store_seconds=0.5)
        submissions = Submissions(writer)
        async with writing(writer):
            assert await submissions.ask(event_row("before")) == ["accepted"]
            await stoppable_postgres.stop()
            begun_at = anyio.current_time()
            assert await submissions.ask(event_row("while"), event_row("while")) == (
                ["unavailable"] * 2
            )
            assert await submissions.ask(event_row("while")) == ["unavailable"]
            assert anyio.current_time() - begun_at < 2 * 0.5 + 2
            await stoppable_postgres.start()
            with anyio.fail_after(10):
                while await submissions.ask(event_row("after")) == ["unavailable"]:
                    assert await counts(database) == (1, 1, 1)
            assert await submissions.ask(event_row("while")) == ["accepted"]
            assert await counts(database) == (3, 3, 3)


async def end_other_sessions(url: str) -> None:
    await rows_of(
        url,
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
    )


@pytest.mark.parametrize("writers", [1, 2])
async def test_connections_that_break_while_nothing_happens_cost_no_event(
    database: Database, database_url: str, writers: int
) -> None:
    writer = event_writer(database)
    submissions = Submissions(writer)
    async with writing(writer, writers):
        for _ in range(2):
            async with nothing_can_be_written(database_url):
                await keep_busy(database_url, submissions, writers)
            await submissions.told()
            await end_other_sessions(database_url)
            await submissions.ask(event_row(), event_row())
    assert set(await submissions.told()) == {"accepted"}


async def test_a_connection_that_breaks_in_the_transaction_costs_no_event(
    database: Database, database_url: str
) -> None:
    writer = event_writer(database)
    submissions = Submissions(writer)
    async with writing(writer):
        async with nothing_can_be_written(database_url):
            submissions.add(event_row(), event_row())
            await until_a_writer_waits(database_url)
            await rows_of(
                database_url,
                "select pg_terminate_backend(pid, 5000) from pg_locks where not granted",
            )
            await until_a_writer_waits(database_url)
        assert await submissions.told() == ["accepted"] * 2
    assert await counts(database) == (2, 2, 2)


async def test_whoever_waits_is_answered_in_time_and_once(
    database: Database, database_url: str
) -> None:
    writer = event_writer(database, store_seconds=0.2)
    submissions = Submissions(writer)
    async with writing(writer, writers=1):
        async with nothing_can_be_written(database_url):
            begun_at = anyio.current_time()
            submissions.add(event_row("in a transaction"))
            await until_a_writer_waits(database_url)
            submissions.add(event_row("not yet"))
            assert writer.backlog == 1
            assert await submissions.told() == ["unavailable"] * 2
            # Its body would else stay for as long as PostgreSQL is slow.
            assert writer.backlog == 0
            assert 0.2 <= anyio.current_time() - begun_at < 3
        # What was given up before it was written is not written any more.
        again = await submissions.ask(event_row("in a transaction"), event_row("not yet"))
        assert again == ["duplicate", "accepted"]
        await submissions.told()


async def test_a_stop_leaves_nobody_without_an_answer(
    database: Database, database_url: str
) -> None:
    writer = event_writer(database, store_seconds=60)
    submissions = Submissions(writer)
    async with nothing_can_be_written(database_url):
        async with writing(writer):
            await keep_busy(database_url, submissions, writers=2)
            submissions.add(event_row(), event_row())
        assert submissions.answers == [["unavailable"]] * len(submissions.answers)


async def test_a_stop_while_postgresql_is_away_leaves_nobody_without_an_answer(
    tmp_path: Path,
) -> None:
    url = f"postgresql://someone@/shop?host={tmp_path}"
    async with open_database(url, DatabaseSettings(connect_timeout_seconds=30)) as database:
        writer = event_writer(database, store_seconds=60)
        submissions = Submissions(writer)
        async with writing(writer):
            submissions.add(event_row(), event_row())
            await anyio.wait_all_tasks_blocked()
        assert submissions.answers == [["unavailable"]] * 2
