"""arq: Redis, a sorted set that its worker polls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from arq import ArqRedis, create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from bench.messages.harness import Payload, Run, Tally, main

POLL_SECONDS = 0.01  # its default of 0.5 would cap it at 1,000 jobs a second
MAX_TRIES = 3


class ArqQueue:
    def __init__(self, redis: ArqRedis, run: Run, tally: Tally) -> None:
        self._redis = redis
        self._run = run
        self._tally = tally

    async def enqueue(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            await self._redis.enqueue_job("notify", **payload)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async def notify(_context: object, **_payload: str) -> None:
            self._tally.start()

        async def acknowledged(_context: object) -> None:
            self._tally.acknowledge()

        worker = Worker(
            [func(notify, name="notify", max_tries=MAX_TRIES, keep_result=0)],
            redis_pool=self._redis,
            max_jobs=self._run.concurrency,
            max_tries=MAX_TRIES,
            keep_result=0,
            poll_delay=POLL_SECONDS,
            after_job_end=acknowledged,
            handle_signals=False,
            log_results=False,
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(worker.async_run())
            yield
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def open_arq(run: Run, tally: Tally) -> AsyncIterator[ArqQueue]:
    redis = await create_pool(RedisSettings.from_dsn(run.url))
    try:
        yield ArqQueue(redis, run, tally)
    finally:
        await redis.aclose()


if __name__ == "__main__":
    main(open_arq)
