"""procrastinate: PostgreSQL, a row a job, LISTEN and NOTIFY."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from procrastinate import App, PsycopgConnector

from bench.messages.harness import Payload, Run, Tally, main

POOL_MAX = 20
RETRIES = 3


class ProcrastinateQueue:
    def __init__(self, app: App, run: Run, tally: Tally) -> None:
        self._app = app
        self._run = run
        self._task = app.task(name="notify", retry=RETRIES)(self._notify)
        self._tally = tally
        # There is no hook for a job whose row has been finished: the worker's own call is watched.
        self._finish_job = app.job_manager.finish_job
        app.job_manager.finish_job = self._acknowledged

    async def enqueue(self, payloads: Sequence[Payload]) -> None:
        if self._run.batch == 1:
            await self._task.defer_async(**payloads[0])
        else:
            await self._task.batch_defer_async(*payloads)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                self._app.run_worker_async(
                    concurrency=self._run.concurrency,
                    delete_jobs="successful",
                    install_signal_handlers=False,
                )
            )
            yield
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _notify(self, **_payload: str) -> None:
        self._tally.start()

    async def _acknowledged(self, *args: Any, **kwargs: Any) -> None:
        await self._finish_job(*args, **kwargs)
        self._tally.acknowledge()


@asynccontextmanager
async def open_procrastinate(run: Run, tally: Tally) -> AsyncIterator[ProcrastinateQueue]:
    app = App(connector=PsycopgConnector(conninfo=run.url, min_size=POOL_MAX, max_size=POOL_MAX))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield ProcrastinateQueue(app, run, tally)


if __name__ == "__main__":
    main(open_procrastinate)
