"""Redis as the rest sees it: one client that survives outages, and one error to catch.

Importing this module imports coredis, which takes most of a second: do so only where Redis is
configured.
"""

import contextlib
import hashlib
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.client import Client
from coredis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterError,
    RedisError,
    ResponseError,
)
from coredis.retry import NoRetryPolicy

from couponflow.config import RedisSettings
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.redis_dialling import Dialling, RedisClient

__all__ = ["Redis", "RedisAway", "RedisError", "Script", "Topic", "open_redis"]

R = TypeVar("R")

_FIRST_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 1.0
_HEARD_MAX = 1000

_MEANS_AWAY = (ConnectionError, RedisClusterError, ReadOnlyError, AuthenticationError, OSError)
# Answers of a server that cannot work now, for which coredis has no class.
_UNABLE = ("OOM", "MISCONF", "MASTERDOWN", "NOREPLICAS", "BUSY", "UNKILLABLE")

_log = structlog.get_logger("couponflow.redis")
_randomness = random.Random()  # noqa: S311 - jitter, not a secret


class RedisAway(Exception):
    """Redis cannot be reached, or cannot work now.

    What was asked of it may have happened or not. Try again later. The operator checks that it
    runs, that it may write (memory, disk, replicas) and that REDIS_URL is right.
    """


class Script:
    """A Lua script, known to the server by its digest once it has run there."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Topic:
    """What is published on one topic from now on; while Redis is away it is lost."""

    def __init__(self, heard: MemoryObjectReceiveStream[bytes]) -> None:
        self._heard = heard

    async def receive(self, timeout_seconds: float) -> bytes | None:
        """Return the next payload, or None when none came in time."""
        with contextlib.suppress(anyio.WouldBlock):
            return self._heard.receive_nowait()
        with anyio.move_on_after(timeout_seconds):
            return await self._heard.receive()
        return None


class _Generation:
    """One pair of coredis clients, from its dialling to its end.

    Blocking reads have a client of their own: cancelling one costs its connection, and with it the
    answers of all commands that share it.
    """

    def __init__(self, plain: RedisClient, blocking: RedisClient) -> None:
        self.plain = plain
        self.blocking = blocking
        self.condemned = anyio.Event()
        self._users = 0
        self._unused = anyio.Event()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def unused(self) -> None:
        while self._users:
            self._unused = anyio.Event()
            await self._unused.wait()


class Redis:
    """A server, or a cluster, that is dialled anew, for ever, whenever it has been away.

    Replies are bytes. No command is ever sent twice by this class: whether that is right, only the
    caller knows.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._dialling = Dialling(settings)
        self._current: _Generation | None = None
        self._trouble = ""
        self._changed = anyio.Event()

    @property
    def trouble(self) -> str:
        """Why Redis is away; empty while it is not, as far as is known."""
        return self._trouble

    async def call(self, command: Callable[[Client[bytes]], Awaitable[R]]) -> R:
        """Run one command of coredis, such as `lambda client: client.xlen("queue:clicks")`.

        Raises `RedisAway` without an answer in `timeout_seconds`, and at once while Redis is known
        to be away; other errors as coredis raises them (`RedisError`).
        """
        generation = await self._ready()
        return await self._run(generation, generation.plain, command, 0.0)

    async def call_blocking(
        self, command: Callable[[Client[bytes]], Awaitable[R]], block_seconds: float
    ) -> R:
        """Run a command that may wait so long on the server, on a connection of its own."""
        generation = await self._ready()
        return await self._run(generation, generation.blocking, command, block_seconds)

    async def script(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int | float]
    ) -> object:
        """Run a Lua script, all keys of which are in one hash slot; raises like `call`."""

        async def run(client: Client[bytes]) -> object:
            try:
                return await client.evalsha(script.digest, keys, args)
            except NoScriptError:
                return await client.eval(script.text, keys, args)

        return await self.call(run)

    async def reachable(self) -> bool:
        """Tell whether Redis answers, within `timeout_seconds`."""
        try:
            await self.call(lambda client: client.ping())
        except RedisAway:
            return False
        return True

    async def back(self) -> None:
        """Return once Redis is not known to be away."""
        while self._trouble:
            await self._changed.wait()

    @contextlib.asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[Topic]:
        """Hear what is published on `topic`, as soon as the block begins if Redis is there.

        Whoever does not receive in time loses the oldest of more than 1000 payloads.
        """
        send, receive = anyio.create_memory_object_stream[bytes](_HEARD_MAX)
        with send, receive:
            async with anyio.create_task_group() as group:
                await group.start(self._hear, topic, send, receive.clone())
                yield Topic(receive)
                group.cancel_scope.cancel()

    async def keep(self) -> None:
        """Keep a pair of clients open, a new one whenever the latest has failed; never returns."""
        waits = self._fresh_waits()
        async with anyio.create_task_group() as group:
            while True:
                opened_at = anyio.current_time()
                generation = await self._open(group)
                if generation is not None:
                    self._show(generation, "")
                    await generation.condemned.wait()
                    self._show(None, self._trouble)
                    if anyio.current_time() - opened_at > _MAX_RETRY_SECONDS:
                        waits = self._fresh_waits()
                        continue
                await anyio.sleep(next(waits))

    async def _open(self, group: TaskGroup) -> _Generation | None:
        outcome: _Generation | str = await group.start(self._live)
        if isinstance(outcome, str):
            self._show(None, outcome)
            return None
        return outcome

    async def _live(self, *, task_status: TaskStatus[_Generation | str]) -> None:
        """Open a pair of clients, until they are condemned and those who use them are done."""
        generation: _Generation | None = None
        reason = f"no answer in {self._settings.timeout_seconds:g} s"
        try:
            # Entered whole, because coredis opens task groups: it cannot be left half open.
            with anyio.move_on_after(self._settings.timeout_seconds) as opening:
                await self._dialling.somebody_listens()
                async with AsyncExitStack() as stack:
                    plain = await self._enter(stack)
                    blocking = await self._enter(stack)
                    await plain.ping()
                    opening.deadline = math.inf
                    self._dialling.opened(plain)
                    generation = _Generation(plain, blocking)
                    task_status.started(generation)
                    await generation.condemned.wait()
                    with anyio.move_on_after(self._settings.timeout_seconds):
                        await generation.unused()
        except* Exception as errors:  # noqa: BLE001 - whatever ended coredis, it is opened anew
            reason = _text(errors)
        finally:
            if generation is not None:
                generation.condemned.set()
        if generation is None:
            task_status.started(reason)

    async def _enter(self, stack: AsyncExitStack) -> RedisClient:
        client = self._dialling.client()
        stack.callback(self._dialling.closed, client)
        return await stack.enter_async_context(client)

    def _show(self, generation: _Generation | None, trouble: str) -> None:
        if trouble and not self._trouble:
            _log.warning("redis_away", server=self._dialling.place, error=trouble)
        if self._trouble and not trouble:
            _log.info("redis_back", server=self._dialling.place)
        self._current, self._trouble = generation, trouble
        self._changed.set()
        self._changed = anyio.Event()

    def _condemn(self, generation: _Generation, reason: str) -> None:
        """Let nobody use these clients from now on."""
        generation.condemned.set()
        if self._current is generation:
            self._show(None, reason)

    async def _ready(self) -> _Generation:
        with anyio.move_on_after(self._settings.timeout_seconds):
            while self._current is None and not self._trouble:
                await self._changed.wait()
        if self._current is None:
            raise self._away(self._trouble or "it is still being dialled")
        return self._current

    async def _run(
        self,
        generation: _Generation,
        client: Client[bytes],
        command: Callable[[Client[bytes]], Awaitable[R]],
        block_seconds: float,
    ) -> R:
        seconds = self._settings.timeout_seconds + block_seconds
        with generation.used(), self._broken_means_away(generation):
            with anyio.move_on_after(seconds):
                return await command(client)
            raise TimeoutError(f"no answer in {seconds:g} s")

    @contextlib.contextmanager
    def _broken_means_away(self, generation: _Generation) -> Iterator[None]:
        try:
            yield
        except _MEANS_AWAY as error:
            self._condemn(generation, _text(error))
            raise self._away(_text(error)) from error
        except ResponseError as error:
            if str(error).startswith(_UNABLE):
                raise self._away(str(error)) from error
            raise
        except (RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            # How a client behaves that is being closed.
            if generation.condemned.is_set():
                raise self._away(_text(error)) from error
            raise

    def _away(self, reason: str) -> RedisAway:
        return RedisAway(
            f"Redis is away ({self._dialling.place}): {reason}; "
            "check that it runs and that REDIS_URL is right"
        )

    async def _hear(
        self,
        topic: str,
        send: MemoryObjectSendStream[bytes],
        oldest: MemoryObjectReceiveStream[bytes],
        *,
        task_status: TaskStatus[None],
    ) -> None:
        waits = self._fresh_waits()
        told = False

        def tell_once() -> None:
            nonlocal told
            if not told:
                told = True
                task_status.started()

        with oldest:
            while True:
                with contextlib.suppress(RedisAway):
                    await self._hear_once(topic, send, oldest, tell_once)
                tell_once()
                await anyio.sleep(next(waits))
                await self.back()

    async def _hear_once(
        self,
        topic: str,
        send: MemoryObjectSendStream[bytes],
        oldest: MemoryObjectReceiveStream[bytes],
        subscribed: Callable[[], None],
    ) -> None:
        generation = await self._ready()
        try:
            async with generation.blocking.pubsub(
                channels=[topic], retry_policy=NoRetryPolicy(), ignore_subscribe_messages=True
            ) as pubsub:
                subscribed()
                async for message in pubsub:
                    if isinstance(message["data"], bytes):
                        if send.statistics().current_buffer_used >= _HEARD_MAX:
                            oldest.receive_nowait()
                        send.send_nowait(message["data"])
        except* (RedisError, OSError, RuntimeError) as errors:
            self._condemn(generation, _text(errors))
            raise self._away(_text(errors)) from errors

    @staticmethod
    def _fresh_waits() -> Iterator[float]:
        return exponential_backoff(_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, _randomness)


@contextlib.asynccontextmanager
async def open_redis(settings: RedisSettings) -> AsyncIterator[Redis]:
    """Open Redis for the block; it need not be up yet, and may come and go."""
    redis = Redis(settings)
    async with anyio.create_task_group() as group:
        group.start_soon(redis.keep)
        try:
            yield redis
        finally:
            group.cancel_scope.cancel()


def _text(error: BaseException) -> str:
    """The text of the first error in a group, and of what caused it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    cause = error.__cause__
    told = str(error) or type(error).__name__
    return f"{told} ({cause})" if cause is not None and str(cause) else told
