"""saq: Redis lists, a blocking read for each of its concurrent tasks."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from saq import Worker
from saq.queue.redis import RedisQueue

from bench.messages.harness import Payload, Run, Tally, main

RETRIES = 3
FORGET = -1  # a job that is done is deleted at once


class SaqQueue:
    def __init__(self, queue: RedisQueue, run: Run, tally: Tally) -> None:
        self._queue = queue
        self._run = run
        self._tally = tally

    async def enqueue(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            await self._queue.enqueue("notify", retries=RETRIES, ttl=FORGET, **payload)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async def notify(_context: object, **_payload: str) -> None:
            self._tally.start()

        async def acknowledged(_context: object) -> None:
            self._tally.acknowledge()

        worker = Worker(
            self._queue,
            [("notify", notify)],
            concurrency=self._run.concurrency,
            after_process=acknowledged,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.start())
            yield
            await worker.stop()


@asynccontextmanager
async def open_saq(run: Run, tally: Tally) -> AsyncIterator[SaqQueue]:
    queue = RedisQueue.from_url(run.url, max_concurrent_ops=run.producers)
    await queue.connect()
    try:
        yield SaqQueue(queue, run, tally)
    finally:
        await queue.disconnect()


if __name__ == "__main__":
    main(open_saq)
