from functools import partial

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from couponflow.kernel.http import open_socket, serve
from tests.kernel.http_clients import HOST, exchange, new_listener, request, serving


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def broken(request: Request) -> Response:
    raise ZeroDivisionError


APP = Starlette(routes=[Route("/", hello), Route("/broken", broken)])


async def test_the_server_does_not_say_what_it_is() -> None:
    listener = new_listener("hypercorn")
    async with serving(partial(serve, APP), listener):
        answer = await exchange(listener, request("/"))
    assert (answer.status, answer.body) == (200, b"hello")
    assert "server" not in dict(answer.headers)


async def test_a_failing_application_is_a_500_and_the_next_request_is_answered() -> None:
    listener = new_listener("hypercorn")
    async with serving(partial(serve, APP), listener):
        assert (await exchange(listener, request("/broken"))).status == 500
        assert (await exchange(listener, request("/"))).status == 200


async def test_a_header_that_is_too_long_is_refused() -> None:
    listener = new_listener("hypercorn")
    async with serving(partial(serve, APP), listener):
        answer = await exchange(listener, request("/", "x: " + "y" * 100_000))
        assert answer.status == 431
        assert (await exchange(listener, request("/"))).status == 200


async def test_a_cancelled_server_ends_and_frees_its_port() -> None:
    listener = new_listener("hypercorn")
    started = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(
                    serve,
                    APP,
                    listener,
                    stopping=anyio.Event(),
                    started=started.set,
                    grace_seconds=0.2,
                )
            )
            await started.wait()
            tasks.cancel_scope.cancel()
    with pytest.raises(OSError, match="connect"):
        await anyio.connect_tcp(HOST, listener.port)


def test_two_daemons_may_share_a_port() -> None:
    listener = new_listener("hypercorn")
    with open_socket(listener) as first, open_socket(listener) as second:
        assert first.getsockname() == second.getsockname() == (HOST, listener.port)
