"""Serving an ASGI application through granian inside our own event loop."""

import asyncio
from collections.abc import Awaitable, Callable

import anyio
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server
from starlette.types import ASGIApp

from couponflow.kernel.http import Listener, PortUnavailable, unavailable, wait_until_accepting


async def serve_granian(
    app: ASGIApp,
    listener: Listener,
    stopping: anyio.Event,
    started: Callable[[], None],
    grace_seconds: float,
) -> None:
    """Serve until `stopping`; contract of `couponflow.kernel.http.serve`."""
    server = granian_server(app, listener, Interfaces.ASGINL)
    await run_until_stopping(server, server.serve, listener, stopping, started, grace_seconds)


def granian_server(target: object, listener: Listener, interface: Interfaces) -> Server:
    return Server(
        target,
        address=listener.host,
        port=listener.port,
        interface=interface,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
        # Connections past this wait in the kernel's queue: the bound on a slow-client attack.
        backlog=listener.max_connections,
        backpressure=listener.max_connections,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(listener.header_seconds * 1000),
            max_buffer_size=listener.max_header_bytes,
        ),
    )


async def run_until_stopping(
    server: Server,
    serve: Callable[[], Awaitable[None]],
    listener: Listener,
    stopping: anyio.Event,
    started: Callable[[], None],
    grace_seconds: float,
) -> None:
    """Run a granian server; whatever ends it, its Rust side is told to stop."""
    finished = anyio.Event()
    failure: PortUnavailable | None = None

    async def run_server() -> None:
        nonlocal failure
        with anyio.CancelScope(shield=True) as guard:
            tasks.start_soon(watch, guard)
            try:
                # Past its grace it is left behind rather than cancelled: the Rust side still
                # resolves its futures when the last client goes.
                await asyncio.shield(serve())
            except RuntimeError as error:
                failure = unavailable(listener, error)
        finished.set()

    async def watch(guard: anyio.CancelScope) -> None:
        try:
            await wait_until_accepting(listener)
            started()
            await stopping.wait()
        finally:
            # Cancelling serve() would leave the Rust side answering: only stop() ends it.
            server.stop()
            guard.deadline = anyio.current_time() + grace_seconds

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_server)
        await finished.wait()
        tasks.cancel_scope.cancel()
    if failure is not None:
        # Raised here, where no task group makes a group of it; and without its cause, because
        # granian puts a Rust backtrace into the text.
        raise failure
