"""granian's fast path: requests answered on the event loop without a task for each.

granian reads and parses requests on threads of its own, outside the interpreter lock. For each it
then wakes the event loop, which makes a task. Here the loop is woken once for all that wait, and
a `FastHandler` answers them one after the other in plain calls; only what it will not answer at
once becomes a task.

The hook is granian's scheduler, which it does not promise to keep: the dependency is pinned, and
`tests/kernel/test_http_granian_fast.py` holds what is relied on here.
"""

import asyncio
import importlib
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup
from granian.constants import Interfaces
from granian.server.embed import AsyncWorker

from couponflow.kernel.http import Listener, PortUnavailable
from couponflow.kernel.http_granian import granian_server, run_until_stopping

# Its type stubs describe another version; this module is the one place that sees it untyped.
_granian: Any = importlib.import_module("granian._granian")
_log = structlog.get_logger("couponflow.http")


class RsgiHeaders(Protocol):
    """A request's headers; names in lower case. A value that is not ASCII is there but hidden."""

    def get(self, key: str, /) -> str | None: ...
    def get_all(self, key: str, /) -> list[str]: ...
    def __contains__(self, key: str, /) -> bool: ...


class RsgiScope(Protocol):
    """What is known of a request before its body is read."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query_string(self) -> str: ...
    @property
    def client(self) -> str: ...
    @property
    def headers(self) -> RsgiHeaders: ...


class RsgiProtocol(Protocol):
    """How a request is answered: by one of these, once."""

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...


class FastHandler(Protocol):
    """An application whose usual answer needs no waiting."""

    def answer_now(self, scope: RsgiScope, protocol: RsgiProtocol) -> bool:
        """Answer at once and return True, or leave the request alone and return False.

        Called on the event loop: it must not block, and must not raise.
        """
        ...

    async def answer_later(self, scope: RsgiScope, protocol: RsgiProtocol) -> None:
        """Answer what takes waiting, in a task of its own; must not raise."""
        ...


class _Watcher(Protocol):
    """granian's handle on one request in progress."""

    scope: RsgiScope
    proto: RsgiProtocol

    def done(self) -> None: ...


async def serve_fast(
    handler: FastHandler,
    listener: Listener,
    *,
    stopping: anyio.Event,
    started: Callable[[], None],
    grace_seconds: float = 5.0,
) -> None:
    """Serve a fast handler; starts, stops and raises as `couponflow.kernel.http.serve` does."""
    server = granian_server(_unused_target, listener, Interfaces.RSGI)
    failure: PortUnavailable | None = None
    async with anyio.create_task_group() as later:
        spawn = AsyncWorker.wrap_target(partial(_spawn_worker, handler, later))
        serve = partial(server.serve, spawn)
        try:
            await run_until_stopping(server, serve, listener, stopping, started, grace_seconds)
        except PortUnavailable as error:
            # Raised only outside of the task group, which would make a group of it.
            failure = error
        # The grace is over for answers that are still being worked on.
        later.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _unused_target(scope: RsgiScope, protocol: RsgiProtocol) -> None:
    """granian wants an application even when the scheduler never calls it."""


async def _spawn_worker(
    handler: FastHandler,
    later: TaskGroup,
    worker_id: int,
    shutdown_signal: Any,
    _target: object,
    sockets: object,
    loop: asyncio.AbstractEventLoop,
    *settings: Any,
) -> None:
    """Do as granian's own RSGI worker does, but with our scheduler."""
    limits, protocols, tls = settings[0:5], settings[6:11], settings[12]
    stopped = loop.create_future()
    shutdown_signal.add_cb(partial(loop.call_soon_threadsafe, stopped.set_result, None))
    worker = _granian.RSGIWorker(worker_id, sockets, None, *limits, *protocols, *tls, (None, None))
    worker.serve_async(_FastScheduler(loop, handler, later), loop, shutdown_signal)
    await stopped


class _FastScheduler(_granian.CallbackScheduler):
    """Wakes the event loop for a burst of requests where granian's own would for each."""

    def __new__(
        cls, loop: asyncio.AbstractEventLoop, handler: FastHandler, later: TaskGroup
    ) -> "_FastScheduler":
        # The last four are for running coroutines, which this scheduler never asks granian to do.
        return super().__new__(cls, loop, None, None, None, None)

    def __init__(
        self, loop: asyncio.AbstractEventLoop, handler: FastHandler, later: TaskGroup
    ) -> None:
        super().__init__()
        answer_now = handler.answer_now

        async def finish(watcher: _Watcher) -> None:
            try:
                await handler.answer_later(watcher.scope, watcher.proto)
            except Exception:  # noqa: BLE001 - one request's fault is not the server's end
                _log.exception("request failed")
            watcher.done()

        # Bounded by granian, which takes in no more than the listener's connections.
        waiting: deque[_Watcher] = deque()
        woken = False

        def answer_waiting() -> None:
            nonlocal woken
            woken = False
            # Those that come meanwhile have woken the loop again: it gets to other work first.
            for _ in range(len(waiting)):
                watcher = waiting.popleft()
                try:
                    if not answer_now(watcher.scope, watcher.proto):
                        later.start_soon(finish, watcher)
                        continue
                except Exception:  # noqa: BLE001 - the rest of the burst must be answered
                    _log.exception("request failed")
                # Left without an answer, granian gives one: 500.
                watcher.done()

        def schedule(watcher: _Watcher) -> None:
            # On granian's thread, with the interpreter lock.
            nonlocal woken
            waiting.append(watcher)
            if not woken:
                woken = True
                loop.call_soon_threadsafe(answer_waiting)

        self._schedule_fn = schedule
