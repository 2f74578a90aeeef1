import inspect
import threading
from collections import Counter
from functools import partial

import anyio
import granian
import pytest
from granian.server.embed import AsyncWorker, Server
from structlog.testing import capture_logs

from couponflow.kernel.http import Listener, PortUnavailable
from couponflow.kernel.http_granian_fast import (
    RsgiProtocol,
    RsgiScope,
    _granian,
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
