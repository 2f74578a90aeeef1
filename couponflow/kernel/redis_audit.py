"""What an audit looks at in Redis; imported only where Redis is configured."""

import msgspec

from couponflow.config import RedisSettings
from couponflow.kernel.redis_client import Redis, RedisAway, Script, open_redis

PAGE_ENTRIES = 1_000

# ARGV: where to begin, how many at most. Answers with entries: id, and fields and values in turn.
_PAGE = Script("return redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])")


async def streamed_messages(settings: RedisSettings, channel: str) -> list[bytes]:
    """The messages, as JSON, that the stream of a channel holds; raises `RedisAway`."""
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
        answer = await redis.script(_PAGE, [key], [start, PAGE_ENTRIES])
        page = msgspec.convert(answer, list[tuple[bytes, list[bytes]]])
        found += [_message(fields) for _, fields in page]
        if len(page) < PAGE_ENTRIES:
            return found
        start = f"({page[-1][0].decode()}"


def _message(fields: list[bytes]) -> bytes:
    """The field `message`; empty where there is none."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"message", b"")
