"""The sender keeps its rate and its bounds, and outlives a target in trouble."""

import heapq
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from anyio.lowlevel import checkpoint
from structlog.testing import capture_logs

from couponflow.kernel.clock import ManualClock
from couponflow.sandbox.shoppers import (
    LANDING_SECONDS,
    MAX_IN_FLIGHT,
    ShopperCounters,
    ShopperLink,
    send_shoppers,
)

LINKS = [ShopperLink(f"/out/store/00000000-0000-4000-8000-{n:012}") for n in range(10)]
USERS = ["11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"]

Answer = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


async def settle() -> None:
    """Let every task come to its next wait; far fewer steps than these do, and all in memory."""
    for _ in range(60):
        await checkpoint()


class VirtualTime:
    """A clock that jumps to the next sleeper's moment as soon as nothing else can happen."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._numbers = itertools.count()

    async def sleep(self, seconds: float) -> None:
        woken = anyio.Event()
        wake_at = self.clock.monotonic() + seconds
        heapq.heappush(self._sleepers, (wake_at, next(self._numbers), woken))
        await woken.wait()

    async def run_until(self, end: float) -> None:
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            wake_at, _, woken = heapq.heappop(self._sleepers)
            self.clock.advance(wake_at - self.clock.monotonic())
            woken.set()
            await settle()
        self.clock.advance(end - self.clock.monotonic())


@asynccontextmanager
async def shoppers(
    answer: Answer, per_second: float, networks_url: str = ""
) -> AsyncIterator[tuple[VirtualTime, ShopperCounters]]:
    """A running stream of shoppers in virtual time, against a target that is a function."""
    time, stop, counters = VirtualTime(), anyio.Event(), ShopperCounters()

    async def send() -> None:
        await send_shoppers(
            "http://target",
            LINKS,
            USERS,
            shoppers_per_second=per_second,
            randomness=random.Random(11),
            clock=time.clock,
            stop=stop,
            networks_url=networks_url,
            counters=counters,
            transport=httpx2.MockTransport(answer),
            sleep=time.sleep,
        )

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            yield time, counters
            stop.set()


async def redirect(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(302, headers={"location": "http://elsewhere/"})


async def test_the_rate_is_kept() -> None:
    async with shoppers(redirect, per_second=5.0) as (time, counters):
        await time.run_until(240.0)
        sent = counters.sent.total()
    assert sent == pytest.approx(240 * 5, rel=0.1)
    assert counters.answers == {302: sent}
    assert counters.failures == {}


async def test_requests_leave_as_they_were_made_up_and_redirects_are_not_followed() -> None:
    seen: list[httpx2.Request] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return await redirect(request)

    async with shoppers(answer, per_second=10.0) as (time, counters):
        await time.run_until(30.0)
    assert {request.url.host for request in seen} == {"target"}
    assert {request.method for request in seen} == {"GET", "HEAD"}
    assert len(seen) == counters.sent.total()
    assert all("x-forwarded-for" in request.headers for request in seen)
    assert not any("httpx" in request.headers["user-agent"] for request in seen)


async def test_some_people_go_on_to_the_networks_and_to_nobody_else() -> None:
    seen: dict[str, list[httpx2.Request]] = {"target": [], "networks": []}
    numbers = itertools.count()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        seen[request.url.host].append(request)
        if request.url.host == "networks":
            return httpx2.Response(200)
        number = next(numbers)
        host = "networks" if number % 2 else "networks.elsewhere"
        return httpx2.Response(302, headers={"location": f"http://{host}/go?subid={number}"})

    networks_url = "http://networks"
    async with shoppers(answer, per_second=50.0, networks_url=networks_url) as (time, counters):
        await time.run_until(20.0)
    assert counters.landed == len(seen["networks"])
    # Five a second, whatever the rate of the clicks.
    assert 40 < counters.landed <= 20 / LANDING_SECONDS + 1
    assert all(int(request.url.params["subid"]) % 2 for request in seen["networks"])
    # A landing is no click of ours, and crawlers and prefetches do not go on.
    assert counters.answers == {302: len(seen["target"])}
    assert {request.method for request in seen["networks"]} == {"GET"}
    assert not any("sec-purpose" in request.headers for request in seen["networks"])


async def test_trouble_is_counted_and_logged_at_a_bounded_rate_and_the_stream_goes_on() -> None:
    numbers = itertools.count()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        match next(numbers) % 4:
            case 0:
                raise httpx2.ConnectError("refused", request=request)
            case 1:
                return httpx2.Response(429)
            case 2:
                return httpx2.Response(503)
            case _:
                return await redirect(request)

    with capture_logs() as logs:
        async with shoppers(answer, per_second=10.0) as (time, counters):
            await time.run_until(35.0)
    warnings = [line for line in logs if line["event"] == "shoppers_not_served"]
    assert len(warnings) == 4
    assert counters.sent.total() > 250
    quarter = counters.sent.total() / 4
    assert counters.failures["ConnectError"] == pytest.approx(quarter, abs=1)
    assert counters.answers[429] == pytest.approx(quarter, abs=1)
    assert counters.answers[503] == pytest.approx(quarter, abs=1)
    assert counters.answers[302] == pytest.approx(quarter, abs=1)
    assert sum(line["shoppers"] for line in warnings) <= counters.troubles


async def test_a_target_that_hangs_bounds_what_is_in_flight() -> None:
    open_gate, waiting = anyio.Event(), 0

    async def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal waiting
        waiting += 1
        await open_gate.wait()
        return await redirect(request)

    async with shoppers(answer, per_second=100.0) as (time, counters):
        await time.run_until(20.0)
        assert waiting == MAX_IN_FLIGHT
        assert counters.sent.total() == MAX_IN_FLIGHT
        assert counters.answers == {}
        # Nineteen seconds were lost; they are not made up for in a rush.
        open_gate.set()
        await time.run_until(21.0)
        assert MAX_IN_FLIGHT < counters.sent.total() < MAX_IN_FLIGHT + 400


def test_counters_describe_themselves() -> None:
    counters = ShopperCounters()
    assert counters.describe() == "0 sent (none); answers: none"
    counters.sent.update({"human": 7, "bot": 2})
    counters.answers.update({302: 6, 429: 1, 500: 1})
    counters.failures.update({"ConnectError": 1})
    assert counters.describe() == (
        "9 sent (2 bot, 7 human); answers: 6 x 302, 1 x 429, 1 x 500; failed: 1 ConnectError"
    )
    assert counters.troubles == 3
    counters.landed = 4
    assert "; 4 went on to a network; failed" in counters.describe()
