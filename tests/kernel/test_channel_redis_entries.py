"""Entries that other programs write: those that are messages, and those that are not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from couponflow.kernel.channel_redis import (
    EnvelopeCodec,
    Malformed,
    RedisChannel,
    open_redis_channel,
)
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.redis_client import Redis
from couponflow.messages import EmailRequested
from tests.kernel.redis_channels import opened_redis
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, until

KEY = "queue:emails"
GOOD = '{"type":"email.v1","to":"a@shop.example","subject":"s","text":"t"}'


class Graveyard:
    """Keeps what is malformed; away as often as it is told to be."""

    def __init__(self, times_away: int = 0) -> None:
        self.kept: list[Malformed] = []
        self.times_away = times_away

    async def keep(self, malformed: Malformed) -> None:
        if self.times_away:
            self.times_away -= 1
            raise ConnectionError("the database is away")
        self.kept.append(malformed)


@asynccontextmanager
async def email_channel(
    redis: Redis, graveyard: Graveyard
) -> AsyncIterator[RedisChannel[Envelope]]:
    async with open_redis_channel(
        redis,
        "emails",
        100,
        EnvelopeCodec([EmailRequested]),
        claim_idle_seconds=30.0,
        on_malformed=graveyard.keep,
    ) as channel:
        yield channel


async def add(redis: Redis, **fields: str | bytes) -> str:
    added = await redis.call(lambda client: client.xadd(KEY, fields))
    assert isinstance(added, bytes)
    return added.decode()


async def until_empty(redis: Redis) -> None:
    while await redis.call(lambda client: client.xlen(KEY)):  # noqa: ASYNC110 - it tells of nothing
        await anyio.sleep(POLL_SECONDS)


async def test_another_program_needs_to_add_no_more_than_the_message(redis_url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, email_channel(redis, Graveyard()) as channel:
            entry_id = await add(redis, message=GOOD)
            async with channel.subscribe("a") as subscription:
                [delivery] = await subscription.receive(1, 0.0)
                assert delivery.tag == entry_id
                assert delivery.message.message == EmailRequested("a@shop.example", "s", "t")
                await subscription.reject([delivery])
                [again] = await subscription.receive(1, 0.0)
                assert again.message == delivery.message


async def test_an_envelope_is_delivered_as_it_was_published(redis_url: str) -> None:
    envelope = Envelope(
        message_id="01920000-0000-7000-8000-0000000000e1",
        message=EmailRequested("a@shop.example", "s", "t"),
        correlation_id="01920000-0000-7000-8000-0000000000e2",
        published_at=1_790_000_000.5,
        attempt=2,
        handover=7,
    )
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            opened_redis(redis_url) as redis,
            email_channel(redis, Graveyard()) as channel,
            channel.subscribe("a") as subscription,
        ):
            handover = await channel.publish([envelope])
            [delivery] = await subscription.receive(1, 0.0)
            assert delivery.message == envelope
            assert handover.tags == [delivery.tag]


async def test_what_is_no_message_is_kept_elsewhere_and_delays_nobody(redis_url: str) -> None:
    graveyard = Graveyard(times_away=3)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis, email_channel(redis, graveyard) as channel:
            bad = await add(redis, message="{", note=b"\xff")
            await add(redis, message=GOOD)
            worse = await add(redis, body=GOOD)
            async with channel.subscribe("a") as subscription:
                received = await subscription.receive(3, 0.05)
                assert len(received) == 1
                await subscription.acknowledge(received)
                await until(lambda: len(graveyard.kept) == 2)
                await until_empty(redis)
            # The one that could not be kept at once lets the other go first.
            first, second = sorted(graveyard.kept, key=lambda kept: kept.entry_id != bad)
            assert (first.channel, first.entry_id, second.entry_id) == ("emails", bad, worse)
            assert first.fields == {b"message": b"{", b"note": b"\xff"}
            assert "not the JSON of a message of this channel (email.v1)" in first.reason
            assert second.reason == "it has no field `message`"
            now = await channel.statistics()
            assert (now.depth, now.in_flight, now.acknowledged) == (0, 0, 1)


async def test_what_could_not_be_kept_is_still_there_for_the_next(redis_url: str) -> None:
    unwilling, graveyard = Graveyard(times_away=1_000_000), Graveyard()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with opened_redis(redis_url) as redis:
            entry_id = await add(redis, message="{")
            async with email_channel(redis, unwilling) as channel, channel.subscribe("a") as idle:
                with anyio.move_on_after(0.1):
                    await idle.receive(1, 0.0)
            assert unwilling.times_away < 1_000_000
            async with (
                email_channel(redis, graveyard) as channel,
                channel.subscribe("a") as idle,
                anyio.create_task_group() as group,
            ):
                group.start_soon(idle.receive, 1, 0.0)
                await until(lambda: len(graveyard.kept) == 1)
                await until_empty(redis)
                group.cancel_scope.cancel()
            assert [each.entry_id for each in graveyard.kept] == [entry_id]
