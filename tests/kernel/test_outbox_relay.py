import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.channel import Subscription
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.health import Check
from couponflow.kernel.migrations import migrate
from couponflow.kernel.outbox import publish
from couponflow.kernel.outbox_relay import CHECK, OutboxRelay
from couponflow.kernel.outbox_rows import PUT_OFF_TIMES_MAX
from couponflow.kernel.outbox_sinks import StreamSink
from couponflow.kernel.redis_client import RedisAway
from tests.fault_proxy import fault_proxy, postgres_target
from tests.kernel.consuming import FakeStream, Handle, Plant, plant
from tests.kernel.outboxes import (
    CHANNEL,
    claim,
    email,
    message_id,
    places,
    publish_emails,
    select,
    until_rows,
)
from tests.kernel.test_consumer import pause
from tests.postgres_server import PostgresServer
from tests.samples import PATIENCE_SECONDS, until

CLOCK = SystemClock()
NEVER_SECONDS = 3600.0
"""A relay that polls so seldom hears of a message by NOTIFY alone."""


@contextlib.asynccontextmanager
async def relaying(relay: OutboxRelay) -> AsyncIterator[Handle]:
    handle = Handle()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(relay.run, handle)
            await handle.running.wait()
            yield handle
            handle.stopping.set()


async def received(subscription: Subscription[Envelope], count: int) -> list[Envelope]:
    """The next envelopes, acknowledged."""
    envelopes: list[Envelope] = []
    with anyio.fail_after(PATIENCE_SECONDS):
        while len(envelopes) < count:
            deliveries = await subscription.receive(100, 0.0)
            await subscription.acknowledge(deliveries)
            envelopes += [delivery.message for delivery in deliveries]
    return envelopes


async def until_listening(database: Database) -> None:
    await until_rows(
        database,
        "select count(*)::int from pg_stat_activity where datname = current_database()"
        " and query ilike 'listen %couponflow_outbox%'",
        (1,),
    )


async def test_what_is_published_is_handed_over_at_once(database: Database, tmp_path: Path) -> None:
    async with (
        plant(database, tmp_path) as built,
        relaying(built.relay(poll_seconds=NEVER_SECONDS)),
        built.channel.subscribe("test") as subscription,
    ):
        await until_listening(database)
        async with database.transaction() as connection:
            published = await publish(connection, email(7), correlation_id="story")
        [envelope] = await received(subscription, 1)
    assert envelope == Envelope(
        message_id=str(published),
        message=email(7),
        correlation_id="story",
        published_at=envelope.published_at,
        attempt=1,
        handover=1,
        begun=True,
    )
    assert abs(envelope.published_at - CLOCK.now()) < PATIENCE_SECONDS


async def test_polling_finds_what_nobody_told_of(database: Database, tmp_path: Path) -> None:
    async with (
        plant(database, tmp_path) as built,
        relaying(built.relay()),
        built.channel.subscribe("test") as subscription,
    ):
        await until_listening(database)
        async with database.transaction() as connection:
            # Written by somebody who does not notify.
            await connection.execute(
                "insert into outbox (id, channel, message, correlation_id) values"
                " (%s, 'emails', %s, 's')",
                [message_id(1), '{"type":"email.v1","to":"a@b","subject":"s","text":""}'],
            )
        [envelope] = await received(subscription, 1)
    assert envelope.message_id == message_id(1)


async def test_what_is_due_later_is_handed_over_when_it_is_due(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        due_at = CLOCK.now() + 0.3
        await publish_emails(database, 1, available_at=due_at)
        async with (
            relaying(built.relay(poll_seconds=NEVER_SECONDS)),
            built.channel.subscribe("test") as subscription,
        ):
            await received(subscription, 1)
            assert due_at <= CLOCK.now() < due_at + PATIENCE_SECONDS / 2


async def test_a_paused_channel_is_handed_nothing(database: Database, tmp_path: Path) -> None:
    async with plant(database, tmp_path) as built:
        await pause(built, True)
        async with relaying(built.relay()), built.channel.subscribe("test") as subscription:
            await until_listening(database)
            published = await publish_emails(database, 3)
            await anyio.wait_all_tasks_blocked()
            assert [place[1] for place in await places(database)] == [None] * 3
            await pause(built, False)
            envelopes = await received(subscription, 3)
    assert [each.message_id for each in envelopes] == published


async def make_unreadable(database: Database, *, put_off_times: int) -> None:
    error = '{"attempt": 1, "at": 1.0, "worker": "w", "error": "cannot be read"}'
    async with database.connection() as connection:
        await connection.execute(
            'update outbox set message = \'{"type":"email.v9"}\', errors = %s::jsonb where id = %s',
            [f"[{','.join([error] * put_off_times)}]", message_id(1)],
        )


async def test_a_row_of_a_newer_version_is_left_to_it(database: Database, tmp_path: Path) -> None:
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 2)
        await make_unreadable(database, put_off_times=0)
        async with relaying(built.relay()), built.channel.subscribe("test") as subscription:
            [envelope] = await received(subscription, 1)
            await until(lambda: built.lease.in_hand == {message_id(2)})
    assert envelope.message_id == message_id(2)
    [(owner, attempts, errors, is_later)] = await select(
        database,
        "select owner, attempts, jsonb_array_length(errors), available_at > now()"
        f" from outbox where id = '{message_id(1)}'",
    )
    assert (owner, attempts, errors, is_later) == (None, 0, 1, True)
    assert await select(database, "select 1 from dead_letters") == []


async def test_a_row_that_no_version_could_read_is_dead(database: Database, tmp_path: Path) -> None:
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 2)
        await make_unreadable(database, put_off_times=PUT_OFF_TIMES_MAX)
        async with relaying(built.relay()), built.channel.subscribe("test") as subscription:
            await received(subscription, 1)
            await until(lambda: built.lease.in_hand == {message_id(2)})
    [(dead, reason, attempts)] = await select(
        database, "select message_id, reason, attempts from dead_letters"
    )
    assert (dead, attempts) == (message_id(1), 1)
    assert str(reason).startswith("not a message of emails: Invalid value 'email.v9'")


async def test_a_relay_that_stops_gives_back_what_is_on_no_channel(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        # The channel holds a hundred, so the last twenty are claimed and wait for room.
        await publish_emails(database, 130)
        async with relaying(built.relay()):
            await until(lambda: len(built.lease.in_hand) == 120)
        owned = [place for place in await places(database) if place[1] == built.lease.worker_id]
        assert len(owned) == len(built.lease.in_hand) == (await built.channel.statistics()).depth
        assert len(owned) == 100
        free = [place for place in await places(database) if place[1] is None]
        assert [place[4] for place in free] == [0] * 30


async def test_a_stream_gets_what_is_due_and_the_rows_say_so(
    database: Database, tmp_path: Path
) -> None:
    stream = FakeStream()
    async with plant(database, tmp_path, channel=stream) as built:
        await publish_emails(database, 2)
        async with relaying(built.relay([StreamSink(stream, database)])):
            await until_streamed(database, 2)
        assert await places(database) == [
            (message_id(n), None, False, str(n - 1), 0, 1, False, []) for n in (1, 2)
        ]
        assert built.lease.in_hand == set()


async def until_streamed(database: Database, count: int) -> None:
    query = "select count(*)::int from outbox where stream_entry is not null"
    await until_rows(database, query, (count,))


@pytest.mark.parametrize("error", [RedisAway("away"), ZeroDivisionError()])
async def test_what_a_sink_refuses_is_given_back(
    database: Database, tmp_path: Path, error: Exception
) -> None:
    stream = FakeStream()
    stream.fails.append(error)
    async with plant(database, tmp_path, channel=stream) as built:
        await publish_emails(database, 2)
        feeder = built.relay([StreamSink(stream, database)])._feeders[0]
        with pytest.raises(type(error)):
            await feeder._hand_over()
        assert await places(database) == [
            (message_id(n), None, False, None, 0, 2, False, []) for n in (1, 2)
        ]
        assert await feeder._hand_over() == 0
        await until_streamed(database, 2)


async def test_a_relay_finds_what_was_claimed_unheard_of(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 3)
        # The answer to this was lost.
        await claim(database, owner=built.lease.worker_id)
        async with relaying(built.relay()), built.channel.subscribe("test") as subscription:
            envelopes = await received(subscription, 3)
    assert [(each.attempt, each.handover) for each in envelopes] == [(1, 3)] * 3


async def test_a_worker_without_a_lease_is_handed_nothing(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 1)
        feeder = built.relay()._feeders[0]
        worker_id, built.lease.worker_id = built.lease.worker_id, ""
        assert await feeder._hand_over() == 0.05
        assert [place[1] for place in await places(database)] == [None]
        built.lease.worker_id = worker_id


async def test_what_became_due_just_now_is_not_slept_over(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        feeder = built.relay(poll_seconds=NEVER_SECONDS)._feeders[0]
        assert await feeder._hand_over() == NEVER_SECONDS
        await publish_emails(database, 1)
        async with database.transaction() as connection:
            await connection.execute("select from outbox for update")
            # Somebody else has it for an instant.
            assert await feeder._hand_over() < 1


async def test_a_relay_goes_on_after_an_outage(
    stoppable_postgres: PostgresServer, tmp_path: Path
) -> None:
    await migrate(stoppable_postgres.url)
    settings = DatabaseSettings(connect_timeout_seconds=0.5)
    async with (
        open_database(stoppable_postgres.url, settings) as database,
        plant(database, tmp_path) as built,
        relaying(built.relay()),
        built.channel.subscribe("test") as subscription,
    ):
        await publish_emails(database, 1)
        await received(subscription, 1)
        await stoppable_postgres.stop()
        await until(lambda: not checks(built)[CHECK].ok)
        assert "PostgreSQL is away" in checks(built)[CHECK].detail
        await stoppable_postgres.start()
        async with database.transaction() as connection:
            await publish(connection, email(2))
        [envelope] = await received(subscription, 1)
        assert envelope.message == email(2)
        await until(lambda: checks(built)[CHECK].ok)


def checks(built: Plant) -> dict[str, Check]:
    return built.health.snapshot().checks


async def test_a_listener_whose_connection_is_cut_listens_again(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        fault_proxy(*postgres_target(database_url)) as proxy,
        open_database(proxy.postgres_url(database_url), DatabaseSettings()) as database,
        plant(database, tmp_path) as built,
        relaying(built.relay(poll_seconds=NEVER_SECONDS)),
        built.channel.subscribe("test") as subscription,
    ):
        await until_listening(database)
        async with database.connection() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and query ilike 'listen %outbox%'"
            )
        await publish_emails(database, 1)
        # Heard of, or found when it listens again.
        await received(subscription, 1)
        await until_listening(database)


async def test_what_was_done_long_ago_is_forgotten(database: Database, tmp_path: Path) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "insert into processed_messages values (%s, %s, 'done', now() - interval '8 days'),"
            " (%s, %s, 'done', now() - interval '6 days')",
            [message_id(1), CHANNEL, message_id(2), CHANNEL],
        )
    async with plant(database, tmp_path) as built, relaying(built.relay()):
        query = "select message_id::text from processed_messages"
        await until_rows(database, query, (message_id(2),))
