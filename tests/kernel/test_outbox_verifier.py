import random
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from couponflow.kernel import outbox_verifier
from couponflow.kernel.database import Database
from couponflow.kernel.handlers import DONE, HandlerContext, Outcome
from couponflow.kernel.outbox_rows import Token
from couponflow.kernel.outbox_sinks import StreamSink
from couponflow.kernel.outbox_verifier import OutboxVerifier
from couponflow.kernel.redis_client import RedisAway
from couponflow.messages import EmailRequested
from tests.kernel.consuming import FakeStream, at_work, plant
from tests.kernel.outboxes import (
    WORKER,
    begin,
    claim,
    message_id,
    places,
    publish_emails,
    register,
    stream,
    token_of,
)
from tests.samples import until


def verifier(fake: FakeStream, database: Database, seconds: float = 3600) -> OutboxVerifier:
    return OutboxVerifier([fake], database, random.Random(1), seconds)


async def stream_emails(database: Database, count: int) -> None:
    """Have a stream carry emails, under the entries 0001-0 and so on."""
    await register(database, WORKER)
    await publish_emails(database, count)
    await stream(database, [token_of(row) for row in await claim(database, count, begun=False)])


async def test_what_a_stream_has_is_left_alone(database: Database) -> None:
    await stream_emails(database, 3)
    before = await places(database)
    walker = verifier(FakeStream(), database)
    await walker.walk(walker._streams[0])
    assert await places(database) == before
    assert walker.reset == 0


async def test_what_a_stream_lost_is_due_again(database: Database) -> None:
    await stream_emails(database, 3)
    fake = FakeStream()
    fake.lost = {"0001-0", "0003-0", "9999-0"}
    walker = verifier(fake, database)
    await walker.walk(fake)
    assert [(place[3], place[5]) for place in await places(database)] == [
        (None, 2),
        ("0002-0", 1),
        (None, 2),
    ]
    assert walker.reset == 2
    [lost] = walker.collect()
    assert [sample.value for sample in lost.samples] == [2]
    assert [row.message_id for row in await claim(database)] == [message_id(1), message_id(3)]


async def test_what_somebody_has_begun_is_not_lost(database: Database) -> None:
    await stream_emails(database, 2)

    class BegunMeanwhile(FakeStream):
        async def missing(self, tags: Sequence[str]) -> list[str]:
            await begin(database, [Token(message_id(1), 1)])
            return [*tags]

    fake = BegunMeanwhile()
    walker = verifier(fake, database)
    await walker.walk(fake)
    assert walker.reset == 1
    assert [(place[1], place[2]) for place in await places(database)] == [
        (WORKER, True),
        (None, False),
    ]


async def test_a_walk_goes_through_every_page(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_verifier, "PAGE_ROWS", 3)
    monkeypatch.setattr(outbox_verifier, "PAGES_PER_SECOND", 1000)
    await stream_emails(database, 7)
    fake = FakeStream()
    fake.lost = {"0007-0", "0001-0"}
    walker = verifier(fake, database)
    await walker.walk(fake)
    assert fake.asked == [3, 3, 1]
    assert walker.reset == 2


async def test_a_verifier_survives_what_it_cannot_ask(database: Database) -> None:
    await stream_emails(database, 1)

    class AwayFirst(FakeStream):
        async def missing(self, tags: Sequence[str]) -> list[str]:
            missing = await super().missing(tags)
            if len(self.asked) == 1:
                raise RedisAway("away")
            return missing

    fake = AwayFirst()
    fake.lost = {"0001-0"}
    walker = verifier(fake, database, 0.001)
    async with anyio.create_task_group() as group:
        group.start_soon(walker.run)
        await until(lambda: walker.reset == 1)
        group.cancel_scope.cancel()
    assert len(fake.asked) >= 2


async def test_a_stream_that_forgets_everything_loses_no_message(
    database: Database, tmp_path: Path
) -> None:
    done: list[str] = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        done.append(context.message_id)
        return DONE

    fake = FakeStream()
    async with plant(database, tmp_path, channel=fake) as built:
        published = await publish_emails(database, 30)
        relay = built.relay([StreamSink(fake, database)])
        await relay._feeders[0]._hand_over()
        await relay._feeders[0]._hand_over()
        # It says that it has none of them, and still hands them out: the old ones are stale.
        fake.lost = {str(number) for number in range(30)}
        walker = verifier(fake, database)
        await walker.walk(fake)
        assert walker.reset == 30
        async with at_work(built, built.consumers(run), relay):
            await built.until_empty()
        assert sorted(done) == published
        assert (built.counts.done, built.counts.duplicate) == (30, 30)
