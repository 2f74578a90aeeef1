"""What an audit looks at in Redis; imported only where Redis is configured."""

import random
from itertools import islice

import anyio
import msgspec

from couponflow.config import RedisSettings
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.redis_client import Redis, RedisAway, Script, open_redis

PAGE_ENTRIES = 1_000
TRIES_MAX = 5
"""A server that is only busy must not make an audit say that something is lost."""

# ARGV: where to begin, how many at most. Answers with entries: id, and fields and values in turn.
_PAGE = Script("return redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])")


async def streamed_messages(settings: RedisSettings, channel: str) -> list[bytes]:
    """The messages, as JSON, that the stream of a channel holds; raises `RedisAway`.

    A page is asked for several times before that.
    """
    async with open_redis(settings) as redis:
        try:
            return await _read(redis, f"queue:{channel}")
        except RedisAway as error:
            # Raised outside, where it is not put into a group.
            away = error
    raise away


async def _read(redis: Redis, key: str) -> list[bytes]:
    found: list[bytes] = []
    start = "-"
    while True:
        page = await _page(redis, key, start)
        found += [_message(fields) for _, fields in page]
        if len(page) < PAGE_ENTRIES:
            return found
        start = f"({page[-1][0].decode()}"


async def _page(redis: Redis, key: str, start: str) -> list[tuple[bytes, list[bytes]]]:
    randomness = random.Random()  # noqa: S311 - spreads retries, guards nothing
    for wait in islice(exponential_backoff(0.1, 1.0, randomness), TRIES_MAX - 1):
        try:
            return await _page_now(redis, key, start)
        except RedisAway:
            await anyio.sleep(wait)
    return await _page_now(redis, key, start)


async def _page_now(redis: Redis, key: str, start: str) -> list[tuple[bytes, list[bytes]]]:
    answer = await redis.script(_PAGE, [key], [start, PAGE_ENTRIES])
    return msgspec.convert(answer, list[tuple[bytes, list[bytes]]])


def _message(fields: list[bytes]) -> bytes:
    """The field `message`; empty where there is none."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"message", b"")
