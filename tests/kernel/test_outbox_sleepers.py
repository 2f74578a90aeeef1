"""Whoever takes over from a worker waits for nothing that it has locked, nor suffers from it."""

import anyio
import psycopg
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel import database_connection, outbox_rows
from couponflow.kernel.database import Database, DatabaseAway, open_database
from couponflow.kernel.outbox import Outgoing, publish_many
from tests.kernel.outboxes import (
    OTHER_WORKER,
    WORKER,
    claim,
    claim_lapsed,
    expire,
    free_lapsed,
    ids_of,
    message_id,
    publish_emails,
    register,
    select,
    sms,
    token_of,
)
from tests.samples import POLL_SECONDS

SOON_SECONDS = 5.0


async def test_messages_of_a_sleeper_are_freed_but_for_those_it_has_locked(
    database: Database,
) -> None:
    await register(database, WORKER)
    await publish_emails(database, 3)
    locked, *_ = await claim(database)
    await expire(database, WORKER)
    async with database.transaction() as asleep:
        assert await outbox_rows.finish(asleep, [token_of(locked)], "done") == {message_id(1)}
        with anyio.fail_after(SOON_SECONDS):
            assert await free_lapsed(database) == 2
        owners = await select(database, "select id::text, owner::text from outbox order by id")
        assert owners == [(message_id(1), WORKER), (message_id(2), None), (message_id(3), None)]
    # What it was in the middle of, it has finished on waking.
    assert await free_lapsed(database) == 0
    assert await select(database, "select id::text from outbox order by id") == [
        (message_id(2),),
        (message_id(3),),
    ]


async def test_a_locked_message_is_freed_once_its_transaction_is_rolled_back(
    database: Database,
) -> None:
    await register(database, WORKER)
    await publish_emails(database, 1)
    [row] = await claim(database)
    await expire(database, WORKER)
    async with database.transaction() as asleep:
        await outbox_rows.finish(asleep, [token_of(row)], "done")
        assert await free_lapsed(database) == 0
        raise psycopg.Rollback
    assert await free_lapsed(database) == 1


async def test_a_worker_is_at_one_message_that_may_kill_it_whatever_the_channel(
    database: Database,
) -> None:
    await register(database, WORKER)
    await register(database, OTHER_WORKER)
    await publish_emails(database, 1)
    async with database.transaction() as connection:
        await publish_many(connection, [Outgoing(message=sms(2), message_id=message_id(2))])
        await connection.execute("update outbox set lapsed = true")
    assert ids_of(await claim_lapsed(database)) == [message_id(1)]
    async with database.connection() as connection:
        assert await outbox_rows.claim_lapsed(connection, "sms", WORKER, begun=True) == []
        [row] = await outbox_rows.claim_lapsed(connection, "sms", OTHER_WORKER, begun=True)
    assert row.message_id == message_id(2)


async def test_postgres_ends_the_transaction_of_a_process_that_fell_asleep_in_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_connection, "IDLE_IN_TRANSACTION_SECONDS", 1)
    async with open_database(database_url, DatabaseSettings()) as database:
        await publish_emails(database, 1)

        async def sleep_in_a_transaction() -> None:
            async with database.transaction() as connection:
                await connection.execute("delete from outbox")
                await until_it_has_ended(database_url)
                await connection.execute("select 1")

        with pytest.raises(DatabaseAway):
            await sleep_in_a_transaction()
        assert await select(database, "select count(*) from outbox") == [(1,)]


async def until_it_has_ended(database_url: str) -> None:
    """Return once no session of the database is idle in a transaction any more."""
    query = (
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and state = 'idle in transaction'"
    )
    async with open_database(database_url, DatabaseSettings()) as looking:
        with anyio.fail_after(SOON_SECONDS):
            while await select(looking, query) != [(0,)]:  # noqa: ASYNC110 - it sets no event
                await anyio.sleep(POLL_SECONDS)
