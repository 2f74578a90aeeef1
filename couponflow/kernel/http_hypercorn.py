"""Serving through Hypercorn, with a deadline of our own on its shutdown."""

import logging
from collections.abc import Callable
from typing import cast

import anyio
from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.typing import Framework
from starlette.types import ASGIApp

from couponflow.kernel.http import Listener, open_socket


async def serve_hypercorn(
    app: ASGIApp,
    listener: Listener,
    stopping: anyio.Event,
    started: Callable[[], None],
    grace_seconds: float,
) -> None:
    """Serve until `stopping`; contract of `couponflow.kernel.http.serve`.

    Hypercorn may wait for ever for a busy connection, and cancelling it leaves its state broken:
    so it is shielded, told to stop, and abandoned only when the grace is over.
    """
    opened = open_socket(listener)
    config = Config()
    config.bind = [f"fd://{opened.detach()}"]
    config.graceful_timeout = grace_seconds
    config.read_timeout = None
    config.keep_alive_timeout = 15
    config.h11_max_incomplete_size = listener.max_header_bytes
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn.error")
    config.loglevel = "WARNING"
    trigger = anyio.Event()
    finished = anyio.Event()

    async def run_server() -> None:
        # A task of its own: Hypercorn leaves its task's count of cancellations wrong.
        with anyio.CancelScope(shield=True) as guard:
            tasks.start_soon(watch, guard)
            await serve(cast(Framework, app), config, shutdown_trigger=trigger.wait)
        finished.set()

    async def watch(guard: anyio.CancelScope) -> None:
        try:
            started()
            await stopping.wait()
        finally:
            trigger.set()
            guard.deadline = anyio.current_time() + grace_seconds + 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_server)
        await finished.wait()
        tasks.cancel_scope.cancel()
