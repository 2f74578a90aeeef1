import anyio
import pytest

from couponflow.kernel import outbox_rows
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letters import AttemptError
from couponflow.kernel.outbox_rows import OutboxCounts, OutboxRow, PutBack, Token
from tests.kernel.letters import dead_email
from tests.kernel.outboxes import (
    CHANNEL,
    OTHER_WORKER,
    WORKER,
    begin,
    claim,
    claim_lapsed,
    expire,
    finish,
    ids_of,
    message_id,
    places,
    publish_emails,
    put_back,
    register,
    select,
    stream,
    token_of,
)
from tests.samples import PATIENCE_SECONDS, rows_of

ROUNDS = 20


@pytest.fixture(autouse=True)
async def workers(database: Database) -> None:
    await register(database, WORKER)
    await register(database, OTHER_WORKER)


async def test_messages_are_claimed_oldest_first(database: Database) -> None:
    await publish_emails(database, 5)
    async with database.connection() as connection:
        await connection.execute(
            "update outbox set available_at = available_at - interval '1 hour' where id = %s",
            [message_id(4)],
        )
    first, rest = await claim(database, 2), await claim(database)
    assert ids_of(first) == [message_id(4), message_id(1)]
    assert ids_of(rest) == [message_id(n) for n in (2, 3, 5)]
    assert await claim(database) == []


async def test_a_claimed_row_tells_all_that_is_known(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database)
    assert row == OutboxRow(
        message_id=message_id(1),
        message='{"type":"email.v1","to":"s1@shop.example","subject":"Hello","text":"text 1",'
        '"html":""}',
        correlation_id=message_id(1),
        published_at=row.published_at,
        attempt=1,
        handover=1,
        lapsed=False,
    )
    assert await places(database) == [(message_id(1), WORKER, True, None, 1, 1, False, [])]


async def test_a_claim_for_a_stream_is_no_attempt_yet(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    assert (row.attempt, row.handover) == (1, 1)
    assert await places(database) == [(message_id(1), WORKER, False, None, 0, 1, False, [])]


async def test_what_is_due_later_or_of_another_channel_is_not_claimed(database: Database) -> None:
    await publish_emails(database, 1, available_at=4_000_000_000)
    assert await claim(database) == []
    assert await claim(database, channel="sms") == []


async def race(database: Database) -> list[list[str]]:
    """Let two claim at once, in small bites, until nothing is left."""
    claimed: list[list[str]] = [[], []]
    ready = [anyio.Event(), anyio.Event()]

    async def claim_all(number: int, owner: str) -> None:
        ready[number].set()
        await ready[1 - number].wait()
        while rows := await claim(database, 7, owner=owner):
            claimed[number] += ids_of(rows)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(claim_all, 0, WORKER)
            group.start_soon(claim_all, 1, OTHER_WORKER)
    return claimed


async def test_two_claimers_at_once_never_get_the_same_message(database: Database) -> None:
    shares: list[bool] = []
    for _ in range(ROUNDS):
        published = await publish_emails(database, 60)
        one, other = await race(database)
        assert sorted([*one, *other]) == published
        shares += [bool(one and other)]
        async with database.connection() as connection:
            await connection.execute("delete from outbox")
    assert any(shares)


async def test_a_worker_without_a_living_lease_claims_nothing(database: Database) -> None:
    await publish_emails(database, 2)
    await expire(database, OTHER_WORKER)
    stranger = "01920000-0000-7000-b000-0000000000ff"
    before = await places(database)
    assert await claim(database, owner=OTHER_WORKER) == []
    assert await claim(database, owner=stranger) == []
    async with database.connection() as connection:
        await connection.execute("update outbox set lapsed = true")
        before = await places(database)
    assert await claim_lapsed(database, owner=OTHER_WORKER) == []
    assert await places(database) == before


async def test_a_worker_without_a_living_lease_begins_nothing(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    await stream(database, [token_of(row)])
    before = await places(database)
    await expire(database, OTHER_WORKER)
    assert await begin(database, [token_of(row)], owner=OTHER_WORKER) == {}
    assert await begin(database, [token_of(row)], owner="") == {}
    assert await places(database) == before
    async with database.connection() as connection:
        assert not await outbox_rows.is_worker_alive(connection, OTHER_WORKER)
        assert not await outbox_rows.is_worker_alive(connection, "")
        assert await outbox_rows.is_worker_alive(connection, WORKER)


async def test_a_streamed_message_is_begun_once(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    await stream(database, [token_of(row)])
    assert await places(database) == [(message_id(1), None, False, "0001-0", 0, 1, False, [])]
    begun = await begin(database, [token_of(row)], owner=OTHER_WORKER)
    assert begun == {message_id(1): outbox_rows.Begun(attempt=1, handover=2, lapsed=False)}
    assert await begin(database, [token_of(row)]) == {}
    assert await begin(database, [token_of(row)], owner=OTHER_WORKER) == {}
    assert await places(database) == [(message_id(1), OTHER_WORKER, True, None, 1, 2, False, [])]


async def test_what_a_worker_began_itself_it_may_begin_again(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    first = await begin(database, [token_of(row)])
    after = await places(database)
    assert await begin(database, [token_of(row)], again=True) == first
    assert await begin(database, [token_of(row)], again=True) == first
    assert await begin(database, [token_of(row)], owner=OTHER_WORKER, again=True) == {}
    assert await places(database) == after


async def test_an_entry_that_is_noted_after_its_message_was_begun_changes_nothing(
    database: Database,
) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    await begin(database, [token_of(row)])
    before = await places(database)
    await stream(database, [token_of(row)])
    assert await places(database) == before


async def stale_token(database: Database) -> Token:
    """The token of somebody who lost its message to `OTHER_WORKER` while it slept."""
    await publish_emails(database, 1)
    [row] = await claim(database)
    await put_back(database, PutBack(token=token_of(row)))
    await claim(database, owner=OTHER_WORKER)
    return token_of(row)


async def test_a_stale_token_changes_nothing(database: Database) -> None:
    token = await stale_token(database)
    before = await places(database)
    assert await finish(database, token) == set()
    assert await put_back(database, PutBack(token=token, after_seconds=5)) == set()
    assert await begin(database, [token]) == {}
    assert await begin(database, [token], again=True) == {}
    await stream(database, [token])
    async with database.transaction() as connection:
        assert await outbox_rows.reset_lost(connection, [token]) == 0
        assert not await outbox_rows.bury_row(connection, token, dead_email(1))
    assert await places(database) == before
    assert await select(database, "select 1 from processed_messages") == []
    assert await select(database, "select 1 from dead_letters") == []


async def test_a_stale_token_resets_no_streamed_message(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    await stream(database, [token_of(row)])
    before = await places(database)
    async with database.connection() as connection:
        stale = Token(row.message_id, row.handover - 1)
        assert await outbox_rows.reset_lost(connection, [stale]) == 0
        assert await places(database) == before
        assert await outbox_rows.reset_lost(connection, [token_of(row)]) == 1
    assert await places(database) == [(message_id(1), None, False, None, 0, 2, False, [])]
    assert await begin(database, [token_of(row)]) == {}


async def test_only_what_was_begun_can_be_finished(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    before = await places(database)
    assert await finish(database, token_of(row)) == set()
    assert await places(database) == before


async def test_what_is_finished_is_remembered_and_gone(database: Database) -> None:
    await publish_emails(database, 3)
    one, two, _ = await claim(database)
    assert await finish(database, token_of(one)) == {message_id(1)}
    async with database.connection() as connection:
        done = await outbox_rows.finish(connection, [token_of(two)], "discarded")
    assert done == {message_id(2)}
    assert await finish(database, token_of(one), token_of(two)) == set()
    assert [place[0] for place in await places(database)] == [message_id(3)]
    assert await select(
        database, "select message_id::text, channel, outcome from processed_messages order by 1"
    ) == [(message_id(1), CHANNEL, "done"), (message_id(2), CHANNEL, "discarded")]


async def test_what_was_done_before_is_not_done_again(database: Database) -> None:
    async with database.connection() as connection:
        assert await outbox_rows.process(connection, message_id(1), CHANNEL)
        assert not await outbox_rows.process(connection, message_id(1), CHANNEL)
    await publish_emails(database, 1)
    [row] = await claim(database)
    assert await finish(database, token_of(row)) == set()
    assert await places(database) == []


async def put_one_back(database: Database, put: PutBack) -> tuple[object, ...]:
    await put_back(database, put)
    [row] = await select(
        database,
        "select attempts, handovers, lapsed, errors,"
        " round(extract(epoch from available_at - published_at)) from outbox",
    )
    return row


async def test_a_message_is_put_back_as_it_is_said(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database)
    failed = AttemptError(1, 5.0, "host:1", "lone \ud800 and \0")
    assert await put_one_back(
        database, PutBack(token=token_of(row), after_seconds=100, error=failed)
    ) == (
        *(1, 2, False),
        [{"attempt": 1, "at": 5.0, "worker": "host:1", "error": "lone ? and \ufffd"}],
        100,
    )
    assert await claim(database) == []


async def test_a_forgiven_attempt_does_not_count_and_keeps_its_place(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database)
    put = PutBack(token=token_of(row), forgiven=True)
    assert await put_one_back(database, put) == (0, 2, False, [], 0)


async def test_what_was_given_to_a_stream_unheard_of_is_due_again(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database, begun=False)
    # Carried out, and the answer was lost; so the relay gives it back.
    await stream(database, [token_of(row)])
    await put_back(database, PutBack(token=token_of(row), survived=False))
    assert await places(database) == [(message_id(1), None, False, None, 0, 2, False, [])]
    assert ids_of(await claim(database)) == [message_id(1)]


async def test_a_time_wins_over_a_wait(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database)
    await put_back(
        database, PutBack(token=token_of(row), available_at=4_000_000_000, after_seconds=1)
    )
    assert await select(database, "select extract(epoch from available_at)::int8 from outbox") == [
        (4_000_000_000,)
    ]


async def test_a_dead_message_takes_its_errors_along(database: Database) -> None:
    await publish_emails(database, 1)
    [row] = await claim(database)
    first = AttemptError(1, 5.0, "host:1", "refused")
    await put_back(database, PutBack(token=token_of(row), error=first))
    [row] = await claim(database)
    last = AttemptError(2, 6.0, "host:1", "refused again")
    async with database.transaction() as connection:
        letter = dead_email(1, errors=[last])
        assert await outbox_rows.bury_row(connection, token_of(row), letter)
    assert await places(database) == []
    [(errors,)] = await select(database, "select errors from dead_letters")
    assert errors == [
        {"attempt": 1, "at": 5.0, "worker": "host:1", "error": "refused"},
        {"attempt": 2, "at": 6.0, "worker": "host:1", "error": "refused again"},
    ]


async def adopt(database: Database, number: int, **settings: float) -> None:
    async with database.connection() as connection:
        await outbox_rows.adopt(
            connection,
            dead_email(number, attempts=1, correlation_id="story", published_at=1e9),
            after_seconds=settings.get("after_seconds", 0.0),
            available_at=settings.get("available_at"),
            lapsed=True,
        )


async def test_a_message_without_a_row_is_taken_in_once(database: Database) -> None:
    await adopt(database, 1)
    await adopt(database, 1)
    assert await places(database) == [(message_id(1), None, False, None, 1, 0, True, [])]
    [row] = await claim_lapsed(database)
    assert (row.attempt, row.correlation_id, row.published_at) == (2, "story", 1e9)


async def test_what_is_done_or_dead_is_not_taken_in(database: Database) -> None:
    async with database.transaction() as connection:
        await outbox_rows.process(connection, message_id(1), CHANNEL)
        await outbox_rows.bury(connection, [dead_email(2)])
    await adopt(database, 1)
    await adopt(database, 2)
    assert await places(database) == []


async def test_the_next_due_message_is_foreseen(database: Database) -> None:
    async with database.connection() as connection:
        assert await outbox_rows.seconds_to_next(connection, CHANNEL) is None
        await publish_emails(database, 1, available_at=4_000_000_000)
        seconds = await outbox_rows.seconds_to_next(connection, CHANNEL)
        assert seconds is not None
        assert seconds > 1e8
        await connection.execute("update outbox set available_at = now()")
        assert await outbox_rows.seconds_to_next(connection, CHANNEL) == 0
        assert await outbox_rows.count_due(connection, CHANNEL, 10) == 1


async def test_rows_are_counted_by_channel_and_state(database: Database) -> None:
    async with database.connection() as connection:
        assert await outbox_rows.count_by_channel(connection) == {}
    await publish_emails(database, 7)
    await claim(database, 1)
    await stream(database, [token_of(row) for row in await claim(database, 2, begun=False)])
    async with database.connection() as connection:
        await connection.execute(
            "update outbox set available_at = now() + interval '1 hour' where id = %s",
            [message_id(7)],
        )
        counts = (await outbox_rows.count_by_channel(connection))[CHANNEL]
    assert counts == OutboxCounts(
        due=3, later=1, leased=1, streamed=2, oldest_due_seconds=counts.oldest_due_seconds
    )
    assert 0 < counts.oldest_due_seconds < 60


async def test_what_was_done_long_ago_is_forgotten(database: Database) -> None:
    async with database.connection() as connection:
        for number in (1, 2, 3):
            await outbox_rows.process(connection, message_id(number), CHANNEL)
        await connection.execute(
            "update processed_messages set processed_at = now() - interval '8 days'"
            " where message_id <> %s",
            [message_id(3)],
        )
        assert await outbox_rows.prune_processed(connection, 7, 1) == 1
        assert await outbox_rows.prune_processed(connection, 7, 5) == 1
        assert await outbox_rows.prune_processed(connection, 7, 5) == 0
        rows = await rows_of(database.url, "select message_id::text from processed_messages")
    assert rows == [(message_id(3),)]


async def test_a_page_of_streamed_messages_follows_another(database: Database) -> None:
    await publish_emails(database, 5)
    rows = await claim(database, 4, begun=False)
    await stream(database, [token_of(row) for row in rows])
    async with database.connection() as connection:
        zero = "00000000-0000-0000-0000-000000000000"
        page = await outbox_rows.streamed_page(connection, CHANNEL, zero, 3)
        last = await outbox_rows.streamed_page(connection, CHANNEL, page[-1][0].message_id, 3)
        assert await outbox_rows.streamed_page(connection, "sms", zero, 3) == []
    assert page == [(Token(message_id(n), 1), f"000{n}-0") for n in (1, 2, 3)]
    assert last == [(Token(message_id(4), 1), "0004-0")]
