"""Consumers of messages that come through a stream, where PostgreSQL is asked to begin them."""

from pathlib import Path

import anyio

from couponflow.config import DatabaseSettings
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.handlers import DONE, HandlerContext, Outcome
from couponflow.kernel.outbox_sinks import StreamSink
from couponflow.messages import EmailRequested
from tests.fault_proxy import fault_proxy, postgres_target
from tests.kernel.consuming import FakeStream, at_work, plant
from tests.kernel.outboxes import (
    OTHER_WORKER,
    begin,
    claim,
    envelope,
    expire,
    free_lapsed,
    message_id,
    places,
    publish_emails,
    register,
    select,
    stream,
    token_of,
)
from tests.kernel.test_consumer import Gated, cancelled_at_work, effects, effects_of, note
from tests.samples import until

__all__ = ["effects"]


async def test_what_comes_through_a_stream_is_done_once(effects: Database, tmp_path: Path) -> None:
    fake = FakeStream()
    async with plant(effects, tmp_path, channel=fake) as built:
        published = await publish_emails(effects, 60)
        relay = built.relay([StreamSink(fake, effects)])
        async with at_work(built, built.consumers(note), relay):
            await built.until_empty()
        assert await effects_of(effects) == published
        assert (built.counts.done, built.counts.duplicate) == (60, 0)
        assert built.lease.in_hand == set()


async def lapse_in_stream(database: Database, count: int) -> None:
    """Let a worker die over messages that came through a stream."""
    await register(database, OTHER_WORKER)
    await publish_emails(database, count)
    rows = await claim(database, count, owner=OTHER_WORKER, begun=False)
    tokens = [token_of(row) for row in rows]
    await stream(database, tokens)
    await begin(database, tokens, owner=OTHER_WORKER)
    await expire(database, OTHER_WORKER)
    assert await free_lapsed(database) == count


async def test_of_lapsed_messages_only_the_one_at_work_is_begun(
    database: Database, tmp_path: Path
) -> None:
    await lapse_in_stream(database, 4)
    gated, fake = Gated(), FakeStream()
    async with plant(database, tmp_path, channel=fake) as built:
        relay = built.relay([StreamSink(fake, database)])
        # A stream carries all of them; whoever receives them has them all at once.
        for _ in range(4):
            await relay._feeders[0]._hand_over()
        assert fake.depth == 4
        async with at_work(built, built.consumers(gated.run), relay):
            await until(lambda: gated.running == 1)
            await until(lambda: fake.depth == 0)
            # If this worker dies now, the others have lost no attempt.
            assert [(place[0], place[2], place[4]) for place in await places(database)] == [
                (message_id(1), True, 2),
                *((message_id(n), False, 1) for n in (2, 3, 4)),
            ]
            gated.go_on.set()
            await built.until_empty()
        assert gated.most == 1
        assert built.counts.done == 4


async def test_a_consumer_that_crashed_does_not_keep_what_it_had_begun(
    effects: Database, tmp_path: Path
) -> None:
    gated, fake = Gated(), FakeStream()
    async with plant(effects, tmp_path, channel=fake) as built:
        await publish_emails(effects, 10)
        relay = built.relay([StreamSink(fake, effects)])
        await relay._feeders[0]._hand_over()
        async with anyio.create_task_group() as group:
            group.start_soon(cancelled_at_work, built, gated)
            await until(lambda: gated.running == 10)
            group.cancel_scope.cancel()
        assert [(place[1], place[4]) for place in await places(effects)] == [
            (built.lease.worker_id, 1)
        ] * 10
        async with at_work(built, built.consumers(note), relay):
            await built.until_empty()
        assert len(await effects_of(effects)) == 10


async def test_messages_wait_while_their_worker_has_no_lease(
    effects: Database, tmp_path: Path
) -> None:
    fake = FakeStream()
    async with plant(effects, tmp_path, channel=fake) as built:
        await publish_emails(effects, 3)
        relay = built.relay([StreamSink(fake, effects)])
        await relay._feeders[0]._hand_over()
        await expire(effects, built.lease.worker_id)
        async with at_work(built, built.consumers(note), relay):
            await until(lambda: fake.depth == 0)
            assert await effects_of(effects) == []
            await built.lease._beat()
            await built.until_empty()
        assert len(await effects_of(effects)) == 3


async def test_a_lost_answer_to_the_beginning_loses_no_message(
    effects: Database, tmp_path: Path
) -> None:
    fake = FakeStream()
    async with (
        fault_proxy(*postgres_target(effects.url)) as proxy,
        open_database(proxy.postgres_url(effects.url), DatabaseSettings()) as proxied,
        plant(proxied, tmp_path, channel=fake) as built,
    ):
        await publish_emails(effects, 3)
        relay = built.relay([StreamSink(fake, proxied)])
        await relay._feeders[0]._hand_over()
        # It is carried out, and the connection breaks before anybody hears of it.
        proxy.cut_after(b"UPDATE 3", "to_client", drop_pattern=True)
        async with at_work(built, built.consumers(note, consumers=1), relay):
            await built.until_empty()
        assert proxy.cuts == 1
        assert await effects_of(effects) == [message_id(n) for n in (1, 2, 3)]
        assert built.counts.done == 3


async def publish_direct(fake: FakeStream, *numbers: int) -> None:
    """What another program XADDs: messages without a row."""
    await fake.publish([envelope(number=number) for number in numbers])


async def test_messages_of_another_program_are_done_once(effects: Database, tmp_path: Path) -> None:
    fake = FakeStream()
    async with plant(effects, tmp_path, channel=fake) as built:
        await publish_direct(fake, 1, 2, 1)
        async with at_work(built, built.consumers(note), built.relay([])):
            await until(lambda: built.counts.done + built.counts.duplicate == 3)
        assert (built.counts.done, built.counts.duplicate) == (2, 1)
    assert await effects_of(effects) == [message_id(1), message_id(2)]
    assert await places(effects) == []


async def test_a_message_of_another_program_that_fails_gets_a_row(
    database: Database, tmp_path: Path
) -> None:
    attempts: list[int] = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        attempts.append(context.attempt)
        if len(attempts) < 3:
            raise ValueError(f"failure {context.attempt}")
        return DONE

    fake = FakeStream()
    async with plant(database, tmp_path, channel=fake) as built:
        await publish_direct(fake, 1)
        relay = built.relay([StreamSink(fake, database)])
        async with at_work(built, built.consumers(run), relay):
            await until(lambda: built.counts.done == 1)
    assert attempts == [1, 2, 3]
    assert await select(database, "select message_id::text, outcome from processed_messages") == [
        (message_id(1), "done")
    ]


async def test_a_message_of_another_program_that_comes_again_gets_a_row(
    database: Database, tmp_path: Path
) -> None:
    gated, fake = Gated(), FakeStream()
    async with plant(database, tmp_path, channel=fake) as built:
        await publish_direct(fake, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(cancelled_at_work, built, gated)
            await until(lambda: gated.running == 1)
            group.cancel_scope.cancel()
        # It may have killed its consumer, so it is tried alone, and the attempt counts.
        async with at_work(built, built.consumers(gated.run), built.relay([])):
            await until(lambda: built.counts.retry == 1)
        [(*place, errors)] = await places(database)
        assert place == [message_id(1), None, False, None, 1, 0, True]
        assert isinstance(errors, list)
        assert [each["attempt"] for each in errors] == [1]
