"""granian's fast path: requests answered on the event loop without a task for each.

granian reads and parses requests on a thread of its own, outside the interpreter lock. For each it
then wakes the event loop, which makes a task. Here the loop is woken once for all that wait, and
a `FastHandler` answers them one after the other in plain calls; only what it will not answer at
once becomes a task. A `BodyHandler` has a body read before the loop is woken at all.

The hook is granian's scheduler, which it does not promise to keep: the dependency is pinned, and
`tests/kernel/test_http_granian_fast.py` holds what is relied on here.
"""

import asyncio
import importlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

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
T = TypeVar("T")


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


class RsgiBody(Protocol):
    """A request's body while it is read: a future of the event loop, but no `asyncio.Future`."""

    def add_done_callback(
        self, callback: Callable[["RsgiBody"], object], *, context: Context | None
    ) -> None:
        """Called on the event loop; also when the client has gone, and `result` raises."""
        ...

    def result(self) -> bytes: ...

    def cancel(self) -> bool:
        """Stop reading, which closes the connection once it is answered."""
        ...


class RsgiProtocol(Protocol):
    """How a request is answered: by one of these, once."""

    def __call__(self) -> "RsgiBody":
        """Begin to read the whole body, which may be of any length."""
        ...

    def __aiter__(self) -> "RsgiPieces":
        """Begin to read the body in pieces: by `pieces_of`, since a task cannot await them."""
        ...

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...


class RsgiPieces(Protocol):
    """A body that is read piece by piece."""

    def __anext__(self) -> RsgiBody:
        """Begin to read the next piece; raises `StopAsyncIteration` at once after the last."""
        ...


async def pieces_of(protocol: RsgiProtocol) -> AsyncIterator[bytes]:
    """A request's body in pieces, as they arrive, for a task.

    granian ends a whole body with one empty piece, and one that broke off with another after it.
    """
    pieces = protocol.__aiter__()
    while True:
        try:
            coming = pieces.__anext__()
        except StopAsyncIteration:
            return
        yield await _arrival(coming)


async def _arrival(coming: RsgiBody) -> bytes:
    # granian's future is of `_LoopOfBodies`, so a task would refuse to wait for it.
    arrived = asyncio.get_running_loop().create_future()

    def tell(piece: RsgiBody) -> None:
        if not arrived.done():
            arrived.set_result(None)

    coming.add_done_callback(tell, context=None)
    try:
        await arrived
    except asyncio.CancelledError:
        coming.cancel()
        raise
    return coming.result()


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


@runtime_checkable
class BodyHandler(FastHandler, Protocol):
    """A `FastHandler` that also answers requests with a body, in callbacks instead of tasks."""

    def begin(
        self, scope: RsgiScope, protocol: RsgiProtocol, finished: Callable[[], object]
    ) -> bool:
        """Take a request on and return True, or return False, and it goes on to `answer_now`.

        Who takes it on answers it by `protocol` in the end, on the event loop, and calls `finished`
        after that, whatever happens: before, the server does not let go of the request.

        Called on granian's thread, between any two steps of what runs on the event loop: there is
        a wake-up less for it, but it may only read what nobody changes, or change it by operations
        that are whole under the interpreter lock. It must not block, and must not raise.
        """
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
    scheduler = _FastScheduler(loop, handler, later)
    # granian asks the event loop for nothing but to call back when a body has been read.
    worker.serve_async(scheduler, _LoopOfBodies(loop), shutdown_signal)
    await stopped


class _Arrivals(Generic[T]):
    """What other threads hand to the event loop, which is woken once for all that is there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[T], object]) -> None:
        """`take` is called on the event loop, with one after the other, and must not raise."""
        self._loop = loop
        self._take = take
        # Bounded by granian, which takes in no more than the listener's connections.
        self._waiting: deque[T] = deque()
        self._woken = False

    def put(self, thing: T) -> None:
        """Hand something over, on any thread that has the interpreter lock."""
        self._waiting.append(thing)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False
        # Those that come meanwhile have woken the loop again: it gets to other work first.
        for _ in range(len(self._waiting)):
            self._take(self._waiting.popleft())


class _LoopOfBodies:
    """The event loop as granian's futures of bodies know it: they make these two calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._read = _Arrivals[tuple[Callable[[RsgiBody], object], RsgiBody]](loop, _tell)

    def call_soon_threadsafe(
        self,
        callback: Callable[[RsgiBody], object],
        body: RsgiBody,
        *,
        context: Context | None = None,
    ) -> None:
        """A body has been read."""
        self._read.put((callback, body))

    def call_soon(
        self,
        callback: Callable[[RsgiBody], object],
        body: RsgiBody,
        *,
        context: Context | None = None,
    ) -> None:
        """A body was given up, or had been read before anybody asked, on whichever thread."""
        self._read.put((callback, body))


def _tell(read: tuple[Callable[[RsgiBody], object], RsgiBody]) -> None:
    callback, body = read
    try:
        callback(body)
    except Exception:  # noqa: BLE001 - the others of the burst must be told
        _log.exception("request failed")


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
        begin = handler.begin if isinstance(handler, BodyHandler) else None

        async def finish(watcher: _Watcher) -> None:
            try:
                await handler.answer_later(watcher.scope, watcher.proto)
            except Exception:  # noqa: BLE001 - one request's fault is not the server's end
                _log.exception("request failed")
            watcher.done()

        def answer(watcher: _Watcher) -> None:
            try:
                if not answer_now(watcher.scope, watcher.proto):
                    later.start_soon(finish, watcher)
                    return
            except Exception:  # noqa: BLE001 - the rest of the burst must be answered
                _log.exception("request failed")
            # Left without an answer, granian gives one: 500.
            watcher.done()

        arrived = _Arrivals(loop, answer)

        def schedule(watcher: _Watcher) -> None:
            # On granian's thread, with the interpreter lock.
            if begin is not None:
                try:
                    if begin(watcher.scope, watcher.proto, watcher.done):
                        return
                except Exception:  # noqa: BLE001 - granian's thread must go on
                    _log.exception("request failed")
                    watcher.done()
                    return
            arrived.put(watcher)

        self._schedule_fn = schedule
