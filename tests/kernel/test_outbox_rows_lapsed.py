"""What becomes of rows whose worker died, slept, or left."""

import anyio
import pytest

from couponflow.kernel import outbox_rows
from couponflow.kernel.database import Database
from couponflow.kernel.outbox_rows import PutBack
from tests.kernel.outboxes import (
    CHANNEL,
    OTHER_WORKER,
    WORKER,
    claim,
    claim_lapsed,
    expire,
    finish,
    free_lapsed,
    ids_of,
    message_id,
    places,
    publish_emails,
    put_back,
    register,
    stream,
    token_of,
    until_rows,
)
from tests.samples import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
async def workers(database: Database) -> None:
    await register(database, WORKER)
    await register(database, OTHER_WORKER)


async def lapse(database: Database, count: int) -> None:
    """Let `OTHER_WORKER` die over messages."""
    await publish_emails(database, count)
    await claim(database, owner=OTHER_WORKER)
    await expire(database, OTHER_WORKER)
    assert await free_lapsed(database) == count


async def test_only_what_a_dead_worker_had_begun_lapses(database: Database) -> None:
    await publish_emails(database, 3)
    await claim(database, 1, owner=OTHER_WORKER)
    await claim(database, 1, owner=OTHER_WORKER, begun=False)
    await claim(database, 1)
    assert await free_lapsed(database) == 0
    await expire(database, OTHER_WORKER)
    assert await free_lapsed(database) == 2
    one, two, three = await places(database)
    error = one[-1]
    assert one[:-1] == (message_id(1), None, False, None, 1, 2, True)
    assert two == (message_id(2), None, False, None, 0, 2, False, [])
    assert three == (message_id(3), WORKER, True, None, 1, 1, False, [])
    assert isinstance(error, list)
    assert [(each["attempt"], each["worker"], each["error"]) for each in error] == [
        (1, "host:2", "the worker died, or lost its lease, during this attempt")
    ]


async def test_the_messages_of_an_unknown_worker_are_freed(database: Database) -> None:
    await publish_emails(database, 1)
    await claim(database)
    async with database.connection() as connection:
        await connection.execute("delete from workers where id = %s", [WORKER])
    assert await free_lapsed(database) == 1
    [place] = await places(database)
    assert place[1] is None


async def test_lapsed_messages_are_claimed_one_at_a_time(database: Database) -> None:
    await lapse(database, 3)
    assert await claim(database) == []
    [one] = await claim_lapsed(database)
    assert (one.message_id, one.attempt, one.lapsed) == (message_id(1), 2, True)
    assert await claim_lapsed(database) == []
    third = "01920000-0000-7000-b000-000000000003"
    await register(database, third)
    [two] = await claim_lapsed(database, owner=third)
    assert two.message_id == message_id(2)
    assert await finish(database, token_of(one)) == {message_id(1)}
    [last] = await claim_lapsed(database)
    assert last.message_id == message_id(3)


async def test_a_message_whose_worker_survived_it_is_like_any_other(database: Database) -> None:
    await lapse(database, 2)
    [one] = await claim_lapsed(database)
    await put_back(database, PutBack(token=token_of(one), survived=False))
    assert await claim(database) == []
    [one] = await claim_lapsed(database)
    await put_back(database, PutBack(token=token_of(one)))
    assert ids_of(await claim(database)) == [message_id(1)]


async def test_a_worker_that_leaves_gives_everything_back(database: Database) -> None:
    await publish_emails(database, 3)
    await claim(database, 1)
    await claim(database, 1, begun=False)
    await claim(database, 1, owner=OTHER_WORKER)
    async with database.connection() as connection:
        await outbox_rows.release_all(connection, WORKER)
    assert await places(database) == [
        (message_id(1), None, False, None, 0, 2, False, []),
        (message_id(2), None, False, None, 0, 2, False, []),
        (message_id(3), OTHER_WORKER, True, None, 1, 1, False, []),
    ]


async def test_a_worker_gives_back_what_it_never_heard_of(database: Database) -> None:
    await publish_emails(database, 3)
    await claim(database, 2)
    await claim(database, 1, owner=OTHER_WORKER)
    async with database.connection() as connection:
        assert await outbox_rows.release_unknown(connection, "sms", WORKER, set()) == 0
        known = {message_id(1)}
        assert await outbox_rows.release_unknown(connection, CHANNEL, WORKER, known) == 1
        assert await outbox_rows.release_unknown(connection, CHANNEL, WORKER, known) == 0
    assert [(place[0], place[1], place[4]) for place in await places(database)] == [
        (message_id(1), WORKER, 1),
        (message_id(2), None, 0),
        (message_id(3), OTHER_WORKER, 1),
    ]


async def test_a_lapsed_message_that_is_due_waits_for_the_one_before(database: Database) -> None:
    await lapse(database, 2)
    async with database.connection() as connection:
        assert await outbox_rows.seconds_to_next(connection, CHANNEL) is None


async def test_what_is_begun_while_a_worker_asks_is_not_given_back(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    await stream(database, [token_of(row)])
    in_hand: set[str] = set()

    async def ask() -> None:
        async with database.connection() as connection:
            assert await outbox_rows.release_unknown(connection, CHANNEL, WORKER, in_hand) == 0

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group, database.transaction() as locked:
            # Whoever asks now waits.
            await locked.execute("lock table outbox in access exclusive mode")
            group.start_soon(ask)
            await until_waiting(database)
            in_hand.add(row.message_id)
            assert await outbox_rows.begin(locked, WORKER, [token_of(row)], [False]) != {}
    assert [(place[1], place[2]) for place in await places(database)] == [(WORKER, True)]


async def until_waiting(database: Database) -> None:
    await until_rows(database, "select count(*)::int from pg_locks where not granted", (1,))
