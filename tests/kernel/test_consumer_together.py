"""Messages that wait together, through channel, desk and settler, with handlers that have several
in one transaction."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.channel_redis import EnvelopeCodec, open_redis_channel
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.consumer import ChannelConsumers
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import (
    DONE,
    DeliveryError,
    Handler,
    HandlerContext,
    Outcome,
    Retry,
    Told,
)
from couponflow.kernel.outbox import Outgoing, publish_many
from couponflow.kernel.outbox_relay import OutboxRelay
from couponflow.kernel.outbox_rows import PutBack
from couponflow.kernel.outbox_sinks import StreamSink
from couponflow.messages import EmailDeliveryReported, EmailRequested
from tests.kernel.consuming import FakeStream, Plant, Run, at_work, plant
from tests.kernel.outboxes import (
    CHANNEL,
    OTHER_WORKER,
    WORKER,
    claim,
    email,
    envelope,
    message_id,
    places,
    publish_emails,
    put_back,
    register,
    select,
    stream,
    token_of,
)
from tests.kernel.redis_channels import CLAIM_IDLE_SECONDS, no_malformed, opened_redis
from tests.kernel.test_consumer import Gated, die_at_work, effects, effects_of, note
from tests.samples import until

pytestmark = pytest.mark.once

__all__ = ["effects"]

COUNT = 20
"""What a relay hands over at once here."""
BAD = message_id(7)


class Batches:
    """A `run_together` whose effects are rows; it notes what it was given at once."""

    def __init__(
        self,
        *,
        fails_over: str = "",
        leaves_out: str = "",
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.given: list[list[str]] = []
        self._fails_over = fails_over
        self._leaves_out = leaves_out
        self._then = then

    async def run(
        self, told: Sequence[Told[EmailRequested]], connection: Connection
    ) -> Sequence[str]:
        ids = [each.message_id for each in told]
        self.given.append(ids)
        done = [each for each in ids if each != self._leaves_out]
        await connection.execute("insert into effects select unnest(%s::uuid[])", [done])
        if self._then is not None:
            await self._then()
        if self._fails_over in ids:
            raise ValueError("one of these")
        return done


class Alone:
    """A handler that notes which attempts it makes, and has the effect of most messages."""

    def __init__(self, over_bad: Callable[[int], Outcome] = lambda _: DONE) -> None:
        self.begun: list[tuple[str, int]] = []
        self._over_bad = over_bad

    async def run(self, message: EmailRequested, context: HandlerContext) -> Outcome:
        self.begun.append((context.message_id, context.attempt))
        if context.message_id == BAD and (outcome := self._over_bad(context.attempt)) != DONE:
            return outcome
        return await note(message, context)


@contextlib.asynccontextmanager
async def carried_by(
    carrier: str, database: Database, var_path: Path, redis_url: str
) -> AsyncIterator[tuple[Plant, OutboxRelay]]:
    """A daemon whose messages go through this process's memory, a stream of its, or Redis."""
    match carrier:
        case "memory":
            async with plant(database, var_path) as built:
                yield built, built.relay()
        case "stream":
            fake = FakeStream()
            async with plant(database, var_path, channel=fake) as built:
                yield built, built.relay([StreamSink(fake, database)])
        case _:
            async with (
                opened_redis(redis_url) as redis,
                open_redis_channel(
                    redis,
                    CHANNEL,
                    100,
                    EnvelopeCodec([EmailRequested]),
                    claim_idle_seconds=CLAIM_IDLE_SECONDS,
                    on_malformed=no_malformed,
                ) as redis_stream,
                plant(database, var_path, channel=redis_stream) as built,
            ):
                yield built, built.relay([StreamSink(redis_stream, database)])


on_every_carrier = pytest.mark.parametrize("carrier", ["memory", "stream", "redis"])


async def hand_over(relay: OutboxRelay, times: int = 1) -> None:
    """Let messages wait on the channel before anybody consumes it."""
    for _ in range(times):
        await relay._feeders[0]._hand_over()


async def work_off(
    built: Plant, relay: OutboxRelay, batches: Batches, run: Run, *others: Handler
) -> ChannelConsumers:
    """Have everything done by one consumer that finds up to 60 messages waiting."""
    await hand_over(relay, 3)
    consumers = built.consumers(
        run, concurrency=60, consumers=1, run_together=batches.run, others=others
    )
    async with at_work(built, consumers, relay):
        await built.until_empty()
    return consumers


@on_every_carrier
async def test_what_waits_together_is_done_together_and_once(
    effects: Database, tmp_path: Path, redis_url: str, carrier: str
) -> None:
    batches, alone = Batches(), Alone()
    async with carried_by(carrier, effects, tmp_path, redis_url) as (built, relay):
        published = await publish_emails(effects, 2 * COUNT)
        await work_off(built, relay, batches, alone.run)
        assert await effects_of(effects) == published
        assert batches.given == [published]
        assert alone.begun == []
        assert (built.counts.done, built.counts.duplicate) == (2 * COUNT, 0)
        assert built.lease.jobs_done == 2 * COUNT
        assert built.lease.in_hand == set()
        assert (await built.channel.statistics()).in_flight == 0
    assert await select(effects, "select count(*) from processed_messages") == [(2 * COUNT,)]


@on_every_carrier
async def test_after_one_that_raises_all_are_attempted_alone(
    effects: Database, tmp_path: Path, redis_url: str, carrier: str
) -> None:
    def refuse(attempt: int) -> Outcome:
        raise DeliveryError("no such mailbox", permanent=True)

    batches, alone = Batches(fails_over=BAD), Alone(refuse)
    async with carried_by(carrier, effects, tmp_path, redis_url) as (built, relay):
        published = await publish_emails(effects, COUNT)
        consumers = await work_off(built, relay, batches, alone.run)
        assert batches.given == [published]
        # What went wrong together does not count against any of them.
        assert sorted(alone.begun) == [(each, 1) for each in published]
        assert (built.counts.done, built.counts.dead, built.counts.retry) == (COUNT - 1, 1, 0)
        assert built.lease.in_hand == set()
        assert consumers._places._taken == 0
    published.remove(BAD)
    assert await effects_of(effects) == published
    letters = "select message_id, attempts, reason, jsonb_array_length(errors) from dead_letters"
    assert await select(effects, letters) == [(BAD, 1, "DeliveryError: no such mailbox", 1)]


@pytest.mark.parametrize("raises", [True, False])
async def test_what_is_not_done_together_is_tried_again_by_the_ordinary_rules(
    effects: Database, tmp_path: Path, raises: bool
) -> None:
    batches = Batches(fails_over=BAD) if raises else Batches(leaves_out=BAD)
    alone = Alone(lambda attempt: DONE if attempt == 3 else Retry(0.0, "not yet"))
    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, COUNT)
        consumers = await work_off(built, built.relay(), batches, alone.run)
        assert batches.given == [published]
        assert [attempt for each, attempt in alone.begun if each == BAD] == [1, 2, 3]
        assert (built.counts.done, built.counts.retry, built.counts.dead) == (COUNT, 2, 0)
        assert consumers._places._taken == 0
    assert await effects_of(effects) == published


async def test_what_is_left_out_is_the_only_one_to_be_attempted_alone(
    effects: Database, tmp_path: Path
) -> None:
    batches, alone = Batches(leaves_out=BAD), Alone()
    async with plant(effects, tmp_path) as built:
        await publish_emails(effects, COUNT)
        await work_off(built, built.relay(), batches, alone.run)
        assert alone.begun == [(BAD, 1)]
        assert built.lease.jobs_done == COUNT


async def test_no_more_than_so_many_are_attempted_together(
    effects: Database, tmp_path: Path
) -> None:
    batches, alone = Batches(), Alone()
    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, 3 * COUNT)
        await work_off(built, built.relay(), batches, alone.run)
        assert sorted(batches.given) == [published[:50], published[50:]]
    assert await effects_of(effects) == published


def report(number: int) -> EmailDeliveryReported:
    return EmailDeliveryReported(
        provider="test", provider_message_id=f"m{number}", state="delivered", occurred_at=1.0
    )


@pytest.mark.parametrize("may", [True, False])
async def test_messages_go_together_with_their_type_only_and_where_it_may(
    effects: Database, tmp_path: Path, may: bool
) -> None:
    batches, alone = Batches(), Alone()
    reported: list[list[str]] = []

    async def take(message: EmailDeliveryReported, context: HandlerContext) -> Outcome:
        reported.append([context.message_id])
        return DONE

    async def take_together(
        told: Sequence[Told[EmailDeliveryReported]], connection: Connection
    ) -> Sequence[str]:
        reported.append([each.message_id for each in told])
        return reported[-1]

    others = Handler("reports", EmailDeliveryReported, take)
    if may:
        others = Handler("reports", EmailDeliveryReported, take, run_together=take_together)
    async with plant(effects, tmp_path) as built:
        outgoing = [
            Outgoing(message=report(n) if n % 2 else email(n), message_id=message_id(n))
            for n in range(COUNT)
        ]
        async with effects.transaction() as connection:
            await publish_many(connection, outgoing)
        await work_off(built, built.relay(), batches, alone.run, others)
        odd = [message_id(n) for n in range(1, COUNT, 2)]
        assert batches.given == [[message_id(n) for n in range(0, COUNT, 2)]]
        # Those that had to wait are not overtaken.
        assert reported == ([odd] if may else [[each] for each in odd])
        assert alone.begun == []
        assert built.counts.done == COUNT


async def test_what_a_worker_died_over_and_what_failed_is_attempted_alone(
    effects: Database, tmp_path: Path
) -> None:
    published = await publish_emails(effects, 8)
    assert await die_at_work(effects, message_id(1), 2)
    await register(effects, WORKER)
    back = [
        PutBack(token=token_of(row), forgiven=row.message_id != BAD) for row in await claim(effects)
    ]
    await put_back(effects, *back)
    batches, alone = Batches(), Alone()
    async with plant(effects, tmp_path) as built:
        await work_off(built, built.relay(), batches, alone.run)
        assert sorted(alone.begun) == [(each, 2) for each in [*published[:2], BAD]]
        assert batches.given == [[each for each in published[2:] if each != BAD]]
    assert await effects_of(effects) == published


async def test_a_message_that_another_worker_takes_meanwhile_is_its_own(
    effects: Database, tmp_path: Path
) -> None:
    async def take_bad() -> None:
        await register(effects, OTHER_WORKER)
        async with effects.connection() as connection:
            await connection.execute(
                "update outbox set owner = %s, handovers = handovers + 1 where id = %s",
                [OTHER_WORKER, BAD],
            )

    batches, alone = Batches(), Alone()
    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, COUNT)
        relay = built.relay()
        await hand_over(relay)
        await take_bad()
        consumers = built.consumers(
            alone.run, concurrency=COUNT, consumers=1, run_together=batches.run
        )
        async with at_work(built, consumers, relay):
            await until(lambda: built.counts.done + built.counts.duplicate == COUNT)
        assert batches.given == []
        assert (built.counts.done, built.counts.duplicate) == (COUNT - 1, 1)
        assert [place[:3] for place in await places(effects)] == [(BAD, OTHER_WORKER, True)]
        assert consumers._places._taken == 0
    published.remove(BAD)
    assert await effects_of(effects) == published


async def test_a_message_that_a_stream_tells_twice_has_its_effect_once(
    effects: Database, tmp_path: Path
) -> None:
    published = await publish_emails(effects, 5)
    await register(effects, WORKER)
    rows = await claim(effects, begun=False)
    await stream(effects, [token_of(row) for row in rows])
    fake, batches, alone = FakeStream(), Batches(), Alone()
    told = [envelope(number=n, handover=row.handover) for n, row in enumerate(rows, 1)]
    await fake.publish([*told, *told])
    async with plant(effects, tmp_path, channel=fake) as built:
        consumers = built.consumers(
            alone.run, concurrency=COUNT, consumers=1, run_together=batches.run
        )
        async with at_work(built, consumers, built.relay([])):
            await until(lambda: len(alone.begun) == 10 and not built.lease.in_hand)
        assert batches.given == []
        assert built.counts.duplicate == 5
        assert consumers._places._taken == 0
    assert await effects_of(effects) == published


@pytest.mark.parametrize("fails_over", ["", BAD])
async def test_a_channel_that_is_sealed_meanwhile_ends_in_order(
    effects: Database, tmp_path: Path, fails_over: str
) -> None:
    begun = anyio.Event()
    channel: MemoryChannel[Envelope] = MemoryChannel(CHANNEL, 100, SystemClock())

    async def until_sealed() -> None:
        begun.set()
        await until(lambda: channel._sealed)
        await anyio.wait_all_tasks_blocked()

    batches, alone = Batches(then=until_sealed, fails_over=fails_over), Alone()
    async with plant(effects, tmp_path, channel=channel) as built:
        published = await publish_emails(effects, COUNT)
        relay = built.relay()
        await hand_over(relay)
        consumers = built.consumers(alone.run, concurrency=50, run_together=batches.run)
        async with at_work(built, consumers, relay):
            await begun.wait()
        assert batches.given == [published]
        assert await effects_of(effects) == published
        assert channel.finished
        assert consumers._places._taken == 0


async def test_a_consumer_that_leaves_meanwhile_attempts_them_alone_side_by_side(
    effects: Database, tmp_path: Path
) -> None:
    begun, go_on, leave = anyio.Event(), anyio.Event(), anyio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    batches, gated = Batches(then=wait, fails_over=BAD), Gated()
    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, COUNT)
        await hand_over(built.relay())
        consumers = built.consumers(
            gated.run, concurrency=COUNT, consumers=1, run_together=batches.run
        )
        async with anyio.create_task_group() as group:
            group.start_soon(consumers._consume, "one", leave, anyio.Event())
            await begun.wait()
            leave.set()
            # Its other tasks have gone home.
            await anyio.wait_all_tasks_blocked()
            go_on.set()
            await until(lambda: gated.running == COUNT)
            gated.go_on.set()
        assert batches.given == [published]
        assert sorted(gated.begun) == published
        assert built.counts.done == COUNT
        assert consumers._places._taken == 0


async def test_consumers_that_are_cancelled_meanwhile_lose_nothing(
    effects: Database, tmp_path: Path
) -> None:
    begun = anyio.Event()

    async def stay() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def work(built: Plant) -> None:
        consumers = built.consumers(note, concurrency=50, run_together=Batches(then=stay).run)
        async with at_work(built, consumers):
            await anyio.sleep_forever()

    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, COUNT)
        async with anyio.create_task_group() as group:
            group.start_soon(work, built)
            await begun.wait()
            group.cancel_scope.cancel()
        assert await effects_of(effects) == []
        # They are still this daemon's, and go together again.
        batches = Batches()
        async with at_work(built, built.consumers(note, run_together=batches.run)):
            await built.until_empty()
        assert len(batches.given) > 0
    assert await effects_of(effects) == published
