"""Channels on a Redis, as several test files open them."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from couponflow.config import RedisSettings
from couponflow.kernel.channel_redis import (
    Checkpoint,
    Malformed,
    MessageCodec,
    RedisChannel,
    open_redis_channel,
)
from couponflow.kernel.redis_client import Redis, open_redis
from couponflow.messages import Click

CLAIM_IDLE_SECONDS = 30.0
"""Longer than any test: nobody is taken for dead who is not."""


async def no_malformed(malformed: Malformed) -> None:
    raise AssertionError(f"an entry is malformed: {malformed}")


@asynccontextmanager
async def opened_redis(url: str, *, cluster: bool = False) -> AsyncGenerator[Redis, None]:
    async with open_redis(RedisSettings(url=url, cluster=cluster)) as redis:
        yield redis


@asynccontextmanager
async def click_channel(
    redis: Redis,
    capacity: int = 100,
    *,
    claim_idle_seconds: float = CLAIM_IDLE_SECONDS,
    checkpoint: Checkpoint = "handed-over",
) -> AsyncIterator[RedisChannel[Click]]:
    async with open_redis_channel(
        redis,
        "clicks",
        capacity,
        MessageCodec(Click),
        claim_idle_seconds=claim_idle_seconds,
        on_malformed=no_malformed,
        checkpoint=checkpoint,
    ) as channel:
        yield channel
