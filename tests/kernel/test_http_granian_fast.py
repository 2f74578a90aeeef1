import asyncio
import inspect
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

import anyio
import granian
import pytest
from granian.server.embed import AsyncWorker, Server
from structlog.testing import capture_logs

from couponflow.kernel.http import Listener, PortUnavailable
from couponflow.kernel.http_granian_fast import (
    BodyHandler,
    RsgiBody,
    RsgiProtocol,
    RsgiScope,
    _granian,
    pieces_of,
    serve_fast,
)
from tests.kernel.http_clients import (
    HOST,
    exchange,
    new_listener,
    read_answer,
    request,
    serving,
)
from tests.samples import until

RELIED_ON = (
    f"granian {granian.__version__} is not as couponflow/kernel/http_granian_fast.py relies on: "
    "compare `_spawn_worker` there with `Server._spawn_rsgi_worker` of granian, and "
    "`_FastScheduler` with its `_CBScheduler`. "
)


class Handler:
    """Answers `/fast...` at once, and everything else in a task."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.now = Counter[str]()
        self.later = Counter[str]()
        self.arrived = anyio.Event()
        self.released = anyio.Event()

    def answer_now(self, scope: RsgiScope, protocol: RsgiProtocol) -> bool:
        self.threads.add(threading.get_ident())
        if not scope.path.startswith("/fast"):
            return False
        self.now[scope.path] += 1
        if scope.path == "/fast/fault":
            raise RuntimeError("a fault")
        seen = f"{scope.method} {scope.path} {scope.query_string} {scope.headers.get('x-a')}"
        headers = [("x-many", ",".join(scope.headers.get_all("x-many")))]
        if scope.path == "/fast/empty":
            protocol.response_empty(204, headers)
        else:
            protocol.response_bytes(200, headers, seen.encode())
        return True

    async def answer_later(self, scope: RsgiScope, protocol: RsgiProtocol) -> None:
        self.later[scope.path] += 1
        if scope.path == "/later/fault":
            raise RuntimeError("a fault")
        if scope.path == "/slow":
            self.arrived.set()
            await self.released.wait()
        protocol.response_bytes(200, [], f"{threading.get_ident()}".encode())


@pytest.fixture
async def handler() -> Handler:
    return Handler()


@pytest.fixture
def listener() -> Listener:
    return new_listener()


def test_granian_is_still_what_is_relied_on() -> None:
    """Fails with an explanation where an upgrade would otherwise break in a strange way."""
    ours = ["worker_id", "shutdown_event", "callback", "sock", "loop"]
    settings = [
        *("runtime_threads", "runtime_blocking_threads", "blocking_threads"),
        *("blocking_threads_idle_timeout", "backpressure", "task_impl", "http_mode"),
        *("http1_settings", "http2_settings", "websockets", "static_path", "log_access_fmt"),
        *("ssl_ctx", "scope_opts"),
    ]
    spawn = inspect.signature(inspect.unwrap(Server._spawn_rsgi_worker))
    assert list(spawn.parameters) == [*ours, *settings], RELIED_ON
    assert "worker.serve_async" in inspect.getsource(Server._spawn_rsgi_worker), RELIED_ON
    assert callable(AsyncWorker.wrap_target), RELIED_ON
    assert "spawn_target" in inspect.signature(Server.serve).parameters, RELIED_ON
    for name in ("_schedule_fn", "_loop", "_ctx"):
        assert hasattr(_granian.CallbackScheduler, name), RELIED_ON + f"no {name}"
    assert hasattr(_granian.RSGIWorker, "serve_async"), RELIED_ON
    for name in ("method", "path", "query_string", "client", "headers"):
        assert hasattr(_granian.RSGIHTTPScope, name), RELIED_ON + f"no scope.{name}"
    for name in ("get", "get_all", "__contains__"):
        assert hasattr(_granian.RSGIHeaders, name), RELIED_ON + f"no headers.{name}"
    for name in ("__call__", "__aiter__"):
        assert name in vars(_granian.RSGIHTTPProtocol), RELIED_ON + f"no {name} of the protocol"


async def test_a_fast_answer_is_given_on_the_event_loop(
    handler: Handler, listener: Listener
) -> None:
    async with serving(partial(serve_fast, handler), listener):
        raw = request("/fast/a?b=c", "X-A: d", "x-many: 1", "x-many: 2")
        answer = await exchange(listener, raw)
        empty = await exchange(listener, request("/fast/empty"))
    assert (answer.status, answer.body) == (200, b"GET /fast/a b=c d")
    assert dict(answer.headers)["x-many"] == "1,2"
    assert (empty.status, empty.body) == (204, b"")
    assert handler.threads == {threading.get_ident()}


async def test_a_later_answer_is_given_on_the_event_loop(
    handler: Handler, listener: Listener
) -> None:
    async with serving(partial(serve_fast, handler), listener):
        answer = await exchange(listener, request("/later"))
    assert answer.body == str(threading.get_ident()).encode()
    assert (handler.now, handler.later) == ({}, {"/later": 1})


async def test_a_thousand_requests_at_once_are_each_answered_once(
    handler: Handler, listener: Listener
) -> None:
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        """Ten requests on one connection, one in five of them for a task."""
        async with await anyio.connect_tcp(HOST, listener.port) as stream:
            for turn in range(10):
                path = "/later" if turn % 5 == 0 else f"/fast/{number}/{turn}"
                await stream.send(request(path))
                answer = await read_answer(stream)
                assert path == "/later" or answer.body.split()[1] == path.encode()
                statuses[answer.status] += 1

    async with (
        serving(partial(serve_fast, handler), listener),
        anyio.create_task_group() as tasks,
    ):
        for number in range(100):
            tasks.start_soon(client, number)
    assert statuses == {200: 1000}
    assert handler.later == {"/later": 200}
    assert len(handler.now) == handler.now.total() == 800
    assert len(handler.threads) == 1


async def test_a_fault_in_one_request_of_a_burst_leaves_the_others_alone(
    handler: Handler, listener: Listener
) -> None:
    statuses: Counter[tuple[str, int]] = Counter()

    async def client(path: str) -> None:
        answer = await exchange(listener, request(path))
        statuses[path, answer.status] += 1

    with capture_logs() as logs:
        async with (
            serving(partial(serve_fast, handler), listener),
            anyio.create_task_group() as tasks,
        ):
            for _ in range(20):
                for path in ("/fast", "/fast/fault", "/later", "/later/fault"):
                    tasks.start_soon(client, path)
    assert statuses == {
        ("/fast", 200): 20,
        ("/fast/fault", 500): 20,
        ("/later", 200): 20,
        ("/later/fault", 500): 20,
    }
    assert [entry["event"] for entry in logs].count("request failed") == 40


@pytest.mark.parametrize(
    "flood",
    [
        request("/fast", *(f"x-{number}: y" for number in range(3000))),
        request("/fast", "x: " + "y" * 100_000),
        request("/fast/" + "y" * 100_000),
    ],
    ids=["many", "long", "path"],
)
async def test_a_flood_of_headers_is_refused_without_asking_the_handler(
    handler: Handler, listener: Listener, flood: bytes
) -> None:
    async with serving(partial(serve_fast, handler), listener):
        assert (await exchange(listener, flood)).status in {414, 431}
        assert handler.now == {}
        assert (await exchange(listener, request("/fast"))).status == 200


async def test_it_starts_again_on_the_same_port(handler: Handler, listener: Listener) -> None:
    for _ in range(3):
        async with serving(partial(serve_fast, handler), listener) as running:
            assert (await exchange(listener, request("/fast"))).status == 200
            assert await running.stop() < 3
        with pytest.raises(OSError, match="connect"):
            await anyio.connect_tcp(HOST, listener.port)
    assert handler.now == {"/fast": 3}


async def test_a_later_answer_under_way_is_finished_within_the_grace(
    handler: Handler, listener: Listener
) -> None:
    async with serving(partial(serve_fast, handler), listener) as running:
        async with await anyio.connect_tcp(HOST, listener.port) as client:
            await client.send(request("/slow"))
            await handler.arrived.wait()
            running.stopping.set()
            await anyio.wait_all_tasks_blocked()
            handler.released.set()
            assert (await read_answer(client)).status == 200
        await running.stopped.wait()


async def test_a_later_answer_that_never_comes_is_cut_off_when_the_grace_is_over(
    handler: Handler, listener: Listener
) -> None:
    async with (
        serving(partial(serve_fast, handler), listener, grace_seconds=0.3) as running,
        await anyio.connect_tcp(HOST, listener.port) as client,
    ):
        await client.send(request("/slow"))
        await handler.arrived.wait()
        assert 0.2 < await running.stop() < 4


async def test_an_idle_client_does_not_hold_up_the_stop(
    handler: Handler, listener: Listener
) -> None:
    async with (
        serving(partial(serve_fast, handler), listener, grace_seconds=8) as running,
        await anyio.connect_tcp(HOST, listener.port) as idle,
    ):
        await idle.send(request("/fast"))
        await read_answer(idle)
        assert await running.stop() < 4


async def test_a_port_of_another_program_is_named(handler: Handler, listener: Listener) -> None:
    other = await anyio.create_tcp_listener(local_host=HOST, local_port=listener.port)
    async with other:
        with anyio.fail_after(10), pytest.raises(PortUnavailable, match=str(listener.port)):
            await serve_fast(
                handler,
                listener,
                stopping=anyio.Event(),
                started=lambda: pytest.fail("it cannot have started"),
            )


class BodyReader(Handler):
    """Takes `/body...` on and reads it in callbacks; leaves the rest as `Handler` does."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = Counter[str]()
        self.begun_on: set[int] = set()
        self.finished = 0
        self.left: list[BaseException] = []
        self.bodies: list[RsgiBody] = []
        self.finish_held: Callable[[], None] | None = None

    def begin(
        self, scope: RsgiScope, protocol: RsgiProtocol, finished: Callable[[], object]
    ) -> bool:
        self.begun_on.add(threading.get_ident())
        path = scope.path
        if not path.startswith("/body"):
            return False
        self.begun[path] += 1
        if path == "/body/fault":
            raise RuntimeError("a fault")

        def finish() -> None:
            self.finished += 1
            finished()

        def read(body: RsgiBody) -> None:
            self.threads.add(threading.get_ident())
            try:
                received = body.result()
            except (OSError, RuntimeError, asyncio.CancelledError) as error:
                self.left.append(error)
            else:
                protocol.response_bytes(200, [], f"{path} {len(received)}".encode())
            finish()

        def answer() -> None:
            protocol.response_bytes(200, [], b"held")
            finish()

        if path == "/body/held":
            self.finish_held = answer
        elif path == "/body/unanswered":
            finish()
        else:
            self.bodies.append(protocol())
            self.bodies[-1].add_done_callback(read, context=None)
        return True


@pytest.fixture
async def reader() -> BodyReader:
    return BodyReader()


def with_body(path: str, body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return request(path, f"content-length: {length}", method="POST") + body


def test_only_who_can_begin_is_asked_to() -> None:
    assert isinstance(BodyReader(), BodyHandler)
    assert not isinstance(Handler(), BodyHandler)


async def test_a_body_is_begun_on_another_thread_and_comes_to_the_event_loop(
    reader: BodyReader, listener: Listener
) -> None:
    chunked = request("/body/c", "transfer-encoding: chunked", method="POST")
    async with serving(partial(serve_fast, reader), listener):
        for raw, body in (
            (with_body("/body/a", b"x" * 1_000_000), b"/body/a 1000000"),
            (with_body("/body/b", b""), b"/body/b 0"),
            (chunked + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"/body/c 3"),
        ):
            answer = await exchange(listener, raw)
            assert (answer.status, answer.body) == (200, body)
    assert reader.threads == {threading.get_ident()}
    # One thread, which cannot have read a body to its end before it has been told whom to call.
    assert len(reader.begun_on - reader.threads) == len(reader.begun_on) == 1
    assert (reader.finished, reader.now, reader.later) == (3, {}, {})


async def test_what_is_not_begun_is_answered_now_or_later(
    reader: BodyReader, listener: Listener
) -> None:
    async with serving(partial(serve_fast, reader), listener):
        assert (await exchange(listener, request("/fast"))).status == 200
        assert (await exchange(listener, with_body("/later", b"unread"))).status == 200
    assert (reader.now, reader.later, reader.begun) == ({"/fast": 1}, {"/later": 1}, {})


@pytest.mark.parametrize(
    "raw",
    [
        with_body("/body/a", b"abc", length=10),
        request("/body/a", "transfer-encoding: chunked", method="POST") + b"3\r\nabc\r\n",
    ],
    ids=["announced", "chunked"],
)
async def test_a_client_that_leaves_in_its_body_ends_the_reading_with_an_error(
    reader: BodyReader, listener: Listener, raw: bytes
) -> None:
    async with serving(partial(serve_fast, reader), listener):
        async with await anyio.connect_tcp(HOST, listener.port) as client:
            await client.send(raw)
            await until(lambda: reader.begun.total() == 1)
        await until(lambda: reader.finished == 1)
        assert len(reader.left) == 1
        assert (await exchange(listener, with_body("/body/b", b"ab"))).body == b"/body/b 2"


async def test_reading_can_be_stopped(reader: BodyReader, listener: Listener) -> None:
    async with (
        serving(partial(serve_fast, reader), listener),
        await anyio.connect_tcp(HOST, listener.port) as client,
    ):
        await client.send(with_body("/body/a", b"abc", length=10))
        await until(lambda: bool(reader.bodies))
        reader.bodies[0].cancel()
        await until(lambda: reader.finished == 1)
        assert (await read_answer(client)).status == 500
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await client.receive()


async def test_faults_and_missing_answers_leave_the_others_alone(
    reader: BodyReader, listener: Listener
) -> None:
    statuses: Counter[tuple[str, int]] = Counter()

    async def client(path: str) -> None:
        answer = await exchange(listener, with_body(path, b"abc"))
        statuses[path, answer.status] += 1

    with capture_logs() as logs:
        async with (
            serving(partial(serve_fast, reader), listener),
            anyio.create_task_group() as tasks,
        ):
            for _ in range(20):
                for path in ("/body", "/body/fault", "/body/unanswered", "/fast"):
                    tasks.start_soon(client, path)
    assert statuses == {
        ("/body", 200): 20,
        ("/body/fault", 500): 20,
        ("/body/unanswered", 500): 20,
        ("/fast", 200): 20,
    }
    assert [entry["event"] for entry in logs].count("request failed") == 20


async def test_what_is_begun_is_finished_within_the_grace(
    reader: BodyReader, listener: Listener
) -> None:
    async with serving(partial(serve_fast, reader), listener) as running:
        async with await anyio.connect_tcp(HOST, listener.port) as client:
            await client.send(request("/body/held"))
            await until(lambda: reader.finish_held is not None)
            running.stopping.set()
            await anyio.wait_all_tasks_blocked()
            assert not running.stopped.is_set()
            assert reader.finish_held is not None
            reader.finish_held()
            assert (await read_answer(client)).body == b"held"
        await running.stopped.wait()


class PieceReader(Handler):
    """Reads every body in pieces, in a task."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.ended: list[type[BaseException] | None] = []

    async def answer_later(self, scope: RsgiScope, protocol: RsgiProtocol) -> None:
        ended: type[BaseException] | None = None
        try:
            async for piece in pieces_of(protocol):
                self.pieces.append(piece)
                self.arrived.set()
            protocol.response_bytes(200, [], b"".join(self.pieces))
        except asyncio.CancelledError as error:
            ended = type(error)
            raise
        finally:
            self.ended.append(ended)


_CHUNKED = request("/pieces", "transfer-encoding: chunked", method="POST")


async def test_a_whole_body_in_pieces_ends_with_one_empty_piece(listener: Listener) -> None:
    reader = PieceReader()
    async with (
        serving(partial(serve_fast, reader), listener),
        await anyio.connect_tcp(HOST, listener.port) as client,
    ):
        await client.send(_CHUNKED + b"2\r\nab\r\n")
        await reader.arrived.wait()
        await client.send(b"1\r\nc\r\n0\r\n\r\n")
        assert (await read_answer(client)).body == b"abc"
    assert reader.pieces == [b"ab", b"c", b""]


async def test_a_body_in_pieces_that_breaks_off_ends_with_two_empty_ones(
    listener: Listener,
) -> None:
    reader = PieceReader()
    async with serving(partial(serve_fast, reader), listener):
        async with await anyio.connect_tcp(HOST, listener.port) as client:
            await client.send(_CHUNKED + b"2\r\nab\r\n")
            await reader.arrived.wait()
        await until(lambda: reader.ended == [None])
    assert reader.pieces == [b"ab", b"", b""]


async def test_who_waits_for_a_piece_can_be_cancelled(listener: Listener) -> None:
    reader = PieceReader()
    async with (
        serving(partial(serve_fast, reader), listener, grace_seconds=0.1) as running,
        await anyio.connect_tcp(HOST, listener.port) as client,
    ):
        await client.send(_CHUNKED + b"2\r\nab\r\n")
        await reader.arrived.wait()
        await running.stop()
    assert (reader.pieces, reader.ended) == ([b"ab"], [asyncio.CancelledError])
