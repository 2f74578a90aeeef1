"""couponflow's stream in Redis, apart from the rest because importing its client takes long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from couponflow.config import RedisSettings
from couponflow.kernel.channel import Stream
from couponflow.kernel.channel_redis import open_redis_channel
from couponflow.kernel.channel_redis_codec import EnvelopeCodec, Malformed
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.redis_client import open_redis
from couponflow.messages import EmailRequested


class EntryRefused(Exception):
    """The stream holds what the bench never wrote there: another program uses its Redis."""


@asynccontextmanager
async def open_stream(settings: RedisSettings, capacity: int) -> AsyncIterator[Stream[Envelope]]:
    """Open the stream as the daemon does, with room for all of the bench's messages."""
    async with (
        open_redis(settings) as redis,
        open_redis_channel(
            redis,
            EmailRequested.channel,
            capacity,
            EnvelopeCodec([EmailRequested]),
            claim_idle_seconds=settings.claim_idle_seconds,
            on_malformed=_refuse,
        ) as stream,
    ):
        yield stream


async def _refuse(entry: Malformed) -> None:
    raise EntryRefused(f"{entry.entry_id}: {entry.reason}")
