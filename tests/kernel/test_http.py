import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Literal

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from couponflow.kernel.http import (
    Listener,
    PortUnavailable,
    free_port,
    require_available,
    serve,
    wait_until_accepting,
)
from tests.kernel.http_clients import (
    HOST,
    exchange,
    new_listener,
    read_answer,
    request,
    serving,
)

SERVERS: tuple[Literal["granian", "hypercorn"], ...] = ("granian", "hypercorn")


class Application:
    """Answers `/`, is slow on `/slow` until it is released, and never ends on `/endless`."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.released = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/slow":
            self.arrived.set()
            await self.released.wait()
        elif scope["path"] == "/endless":
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            self.arrived.set()
            await anyio.sleep_forever()
        await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture(params=SERVERS)
def listener(request: pytest.FixtureRequest) -> Listener:
    return new_listener(request.param)


@pytest.fixture
async def app() -> Application:
    return Application()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which another program listens."""
    with closing(socket.socket()) as other:
        other.bind((HOST, 0))
        other.listen()
        yield other.getsockname()[1]


async def test_it_starts_answers_and_stops(listener: Listener, app: Application) -> None:
    async with serving(partial(serve, app), listener) as running:
        for path in ("/", "/a"):
            answer = await exchange(listener, request(path))
            assert (answer.status, answer.body) == (200, path.encode())
        assert await running.stop() < 3
    with pytest.raises(OSError, match="connect"):
        await anyio.connect_tcp(listener.host, listener.port)


async def test_an_idle_client_that_keeps_its_connection_does_not_hold_up_the_stop(
    listener: Listener, app: Application
) -> None:
    async with (
        serving(partial(serve, app), listener, grace_seconds=8) as running,
        await anyio.connect_tcp(HOST, listener.port) as idle,
    ):
        await idle.send(request("/"))
        assert (await read_answer(idle)).body == b"/"
        assert await running.stop() < 4


async def test_a_client_that_never_finishes_its_request_does_not_hold_up_the_stop(
    listener: Listener, app: Application
) -> None:
    async with (
        serving(partial(serve, app), listener, grace_seconds=1) as running,
        await anyio.connect_tcp(HOST, listener.port) as dawdler,
    ):
        await dawdler.send(b"GET / HT")
        assert await running.stop() < 4


async def test_a_slow_answer_under_way_is_finished_within_the_grace(
    listener: Listener, app: Application
) -> None:
    async with serving(partial(serve, app), listener) as running:
        async with await anyio.connect_tcp(HOST, listener.port) as client:
            await client.send(request("/slow"))
            await app.arrived.wait()
            running.stopping.set()
            await anyio.wait_all_tasks_blocked()
            app.released.set()
            assert (await read_answer(client)).body == b"/slow"
        await running.stopped.wait()


async def test_an_endless_answer_is_cut_off_when_the_grace_is_over(
    listener: Listener, app: Application
) -> None:
    async with (
        serving(partial(serve, app), listener, grace_seconds=0.3) as running,
        await anyio.connect_tcp(HOST, listener.port) as client,
    ):
        await client.send(request("/endless"))
        await app.arrived.wait()
        assert 0.2 < await running.stop() < 4


async def test_a_port_of_another_program_is_named(app: Application, taken_port: int) -> None:
    for server in SERVERS:
        listener = new_listener(server, taken_port)
        with anyio.fail_after(10), pytest.raises(PortUnavailable) as refused:
            await serve(
                app,
                listener,
                stopping=anyio.Event(),
                started=lambda: pytest.fail("it cannot have started"),
            )
        assert str(refused.value).startswith(f"cannot listen on 127.0.0.1:{taken_port}: ")
        assert "\n" not in str(refused.value)


async def test_an_address_that_is_not_of_this_machine_is_refused(app: Application) -> None:
    for server in SERVERS:
        with anyio.fail_after(10), pytest.raises(PortUnavailable, match=r"192\.0\.2\.1"):
            await serve(
                app,
                Listener("192.0.2.1", 4001, server),
                stopping=anyio.Event(),
                started=lambda: pytest.fail("it cannot have started"),
            )


def test_whether_an_address_can_be_had_is_told_beforehand(taken_port: int) -> None:
    require_available(new_listener(), shared=False)
    for shared in (False, True):
        with pytest.raises(PortUnavailable, match="another program listens there"):
            require_available(new_listener(port=taken_port), shared=shared)


def test_an_address_shared_with_another_daemon_is_available_to_those_who_share_it() -> None:
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST, 0))
        other.listen()
        listener = new_listener(port=other.getsockname()[1])
        require_available(listener, shared=True)
        with pytest.raises(PortUnavailable):
            require_available(listener, shared=False)


def test_a_free_port_can_be_listened_on() -> None:
    with closing(socket.socket()) as mine:
        mine.bind((HOST, free_port(HOST)))


@pytest.mark.parametrize(
    ("host", "address", "url"),
    [
        ("127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:80"),
        ("0.0.0.0", "0.0.0.0:80", "http://127.0.0.1:80"),
        ("::", "[::]:80", "http://[::1]:80"),
        ("::1", "[::1]:80", "http://[::1]:80"),
        ("shop.example", "shop.example:80", "http://shop.example:80"),
    ],
)
def test_a_listener_has_an_address_and_a_local_url(host: str, address: str, url: str) -> None:
    listener = Listener(host, 80, "granian")
    assert (listener.address, listener.local_url) == (address, url)


async def test_waiting_for_a_server_that_never_comes_ends() -> None:
    with pytest.raises(TimeoutError):
        await wait_until_accepting(new_listener(), deadline_seconds=0.1)
