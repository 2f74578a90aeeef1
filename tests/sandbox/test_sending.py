"""Who calls a daemon that is just starting waits until it can be called."""

import anyio
import httpx2
from structlog.testing import capture_logs

from couponflow.sandbox.sending import wait_until_open

URL = "http://target"


async def refuse(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused", request=request)


async def test_any_answer_ends_the_wait_and_none_before_it_is_a_trouble() -> None:
    asked = 0

    async def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal asked
        asked += 1
        return await refuse(request) if asked < 5 else httpx2.Response(503)

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with anyio.fail_after(10), capture_logs() as logs:
        await wait_until_open(URL, anyio.Event(), httpx2.MockTransport(answer), sleep)
    assert asked == 5
    assert len(slept) == 4
    assert min(slept) > 0
    assert logs == []


async def test_who_is_told_to_stop_waits_no_longer() -> None:
    stop = anyio.Event()

    async def sleep(_: float) -> None:
        stop.set()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        await wait_until_open(URL, stop, httpx2.MockTransport(refuse), sleep)
