"""Redis streams and shared state for a daemon; imported only where Redis is configured."""

import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

import msgspec
import structlog

from couponflow.config import Settings
from couponflow.kernel import outbox_rows
from couponflow.kernel.channel import Stream
from couponflow.kernel.channel_redis import open_redis_channel
from couponflow.kernel.channel_redis_codec import (
    EnvelopeCodec,
    Malformed,
    MessageCodec,
    token_in,
)
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letters import AttemptError, DeadLetter, bury
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox_rows import Token
from couponflow.kernel.outbox_verifier import OutboxVerifier
from couponflow.kernel.redis_client import Redis, RedisAway, open_redis
from couponflow.kernel.shared_state_redis import RedisSharedState
from couponflow.messages import CHANNELS, Click

CHECK = "redis"
_log = structlog.get_logger("couponflow.messages")


class RedisWiring:
    """What a daemon has in Redis."""

    away = (RedisAway,)
    """What its calls raise while Redis does not answer."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        database: Database,
        clock: Clock,
        health: HealthBoard,
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._database = database
        self._clock = clock
        self._health = health
        self._ids = Uuid7Generator()
        self.shared_state = RedisSharedState(redis)

    async def open_stream(self, stack: contextlib.AsyncExitStack, name: str) -> Stream[Envelope]:
        """Open the stream of a channel whose messages travel in envelopes."""
        return await stack.enter_async_context(
            open_redis_channel(
                self._redis,
                name,
                self._settings.channels.capacity,
                EnvelopeCodec(CHANNELS[name]),
                claim_idle_seconds=self._settings.redis.claim_idle_seconds,
                on_malformed=self._keep_malformed,
                report=partial(self._health.report, f"stream:{name}"),
            )
        )

    async def open_clicks(
        self, stack: contextlib.AsyncExitStack, checkpoint: Literal["handed-over", "acknowledged"]
    ) -> Stream[Click]:
        """Open the stream of clicks."""
        return await stack.enter_async_context(
            open_redis_channel(
                self._redis,
                Click.channel,
                self._settings.channels.capacity,
                MessageCodec(Click),
                claim_idle_seconds=self._settings.redis.claim_idle_seconds,
                on_malformed=self._keep_malformed,
                checkpoint=checkpoint,
                report=partial(self._health.report, f"stream:{Click.channel}"),
            )
        )

    def verifier(
        self, streams: Sequence[Stream[Envelope]], randomness: random.Random
    ) -> OutboxVerifier:
        """What looks for messages that the streams have lost."""
        verify_seconds = self._settings.outbox.verify_seconds
        return OutboxVerifier(streams, self._database, randomness, verify_seconds)

    async def _keep_malformed(self, entry: Malformed) -> None:
        """Keep what is no message of its channel in this version, with the reason."""
        now = self._clock.now()
        found = token_in(entry.fields)
        letter = self._letter(entry, found[0] if found else f"entry {entry.entry_id}", now)
        async with self._database.transaction() as connection:
            if found is not None:
                token = Token(*found)
                error = AttemptError(1, now, "", letter.reason)
                if await outbox_rows.put_off(connection, "", [(token, error)]):
                    _log.warning("message is left to a newer version", channel=entry.channel)
                    return
                if await outbox_rows.bury_row(connection, token, letter):
                    return
                if await outbox_rows.is_known(connection, token.message_id):
                    # A stale entry: the message itself is elsewhere.
                    return
            await bury(connection, [letter])

    def _letter(self, entry: Malformed, message_id: str, now: float) -> DeadLetter:
        # Without a message the whole entry is kept, as readable as it can be.
        readable = {
            name.decode(errors="replace"): value.decode(errors="replace")
            for name, value in entry.fields.items()
        }
        return DeadLetter(
            id=self._ids.make(now),
            channel=entry.channel,
            message_id=message_id,
            message=entry.fields.get(b"message") or msgspec.json.encode(readable),
            reason=f"ill-formed entry: {entry.reason}",
            attempts=1,
        )


@asynccontextmanager
async def open_redis_wiring(
    settings: Settings, database: Database, clock: Clock, health: HealthBoard
) -> AsyncGenerator[RedisWiring, None]:
    """Open Redis for the block; it need not be up."""
    async with open_redis(settings.redis) as redis:
        health.add_probe(CHECK, lambda: (not redis.trouble, redis.trouble))
        try:
            yield RedisWiring(redis, settings, database, clock, health)
        finally:
            health.remove(CHECK)
