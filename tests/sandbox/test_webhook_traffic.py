"""The senders keep their rate and their bounds, and send again until an event is taken."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import anyio
import httpx2
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.http import Listener, free_port, serve
from couponflow.sandbox.learnt import Learnt
from couponflow.sandbox.role import WebhookTrafficParts, senders_role
from couponflow.sandbox.senders.events import Event, SignedRequest
from couponflow.sandbox.senders.keys import demo_keys
from couponflow.sandbox.senders.script import DISORDERLY, Chaos, Known, script
from couponflow.sandbox.senders.signing import sign
from couponflow.sandbox.webhook_traffic import (
    MAX_ATTEMPTS,
    MAX_IN_FLIGHT,
    WebhookCounters,
    endless_scripts,
    send_webhooks,
)

pytestmark = pytest.mark.once

KEYS = demo_keys(random.Random(1))
RUSHED = Chaos(step_seconds=0.001, reorder_seconds=0.01, delay_seconds=0.02, late_seconds=0.05)
EVENT = Event(source="stripe", event_id="evt_1", body=b'{"id":"evt_1","object":"event"}')

Answer = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


class VirtualTime:
    """A clock that jumps to when its one sleeper wakes, once nothing else can happen."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stop = anyio.Event()
        self.stop_at = float("inf")

    async def sleep(self, seconds: float) -> None:
        await settle()
        self.clock.advance(seconds)
        if self.clock.monotonic() >= self.stop_at:
            self.stop.set()
            await anyio.sleep_forever()


async def settle() -> None:
    """Let every task come to its next wait; far fewer steps than these do, and all in memory."""
    for _ in range(60):
        await checkpoint()


async def send(
    time: VirtualTime,
    scripts: Sequence[Sequence[SignedRequest]] | None,
    answer: Answer,
    *,
    per_second: float = 50.0,
    counters: WebhookCounters | None = None,
) -> WebhookCounters:
    """Send these scripts, or scripts without end, in virtual time; the target is a function."""
    randomness = random.Random(11)

    async def handle(request: httpx2.Request) -> httpx2.Response:
        return await answer(request)

    with anyio.fail_after(30):
        return await send_webhooks(
            "http://target",
            endless_scripts(KEYS, time.clock, randomness, DISORDERLY)
            if scripts is None
            else iter(scripts),
            KEYS,
            webhooks_per_second=per_second,
            randomness=randomness,
            clock=time.clock,
            stop=time.stop,
            counters=counters,
            transport=httpx2.MockTransport(handle),
            sleep=time.sleep,
        )


async def take(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200)


async def test_a_target_that_refuses_each_event_at_first_gets_all_of_them_in_the_end() -> None:
    asked: Counter[tuple[str, bytes]] = Counter()
    retried: list[str] = []

    async def refuse_at_first(request: Request) -> Response:
        what = str(request.url), await request.body()
        asked[what] += 1
        if "upstash-retried" in request.headers:
            retried.append(request.headers["upstash-retried"])
        return Response(status_code=503 if asked[what] == 1 else 200)

    app = Starlette(routes=[Route("/{path:path}", refuse_at_first, methods=["GET", "POST"])])
    listener = Listener("127.0.0.1", free_port("127.0.0.1"), "hypercorn")
    known = Known(sms_request_ids=["346c6f1e2a3b4c5d6e7f8091"])
    requests = script(random.Random(2), KEYS, SystemClock().now(), 12, RUSHED, known)
    stop, up = anyio.Event(), anyio.Event()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(app, listener, stopping=stop, started=up.set)

            tasks.start_soon(run)
            await up.wait()
            counters = await send_webhooks(
                listener.local_url,
                iter([requests]),
                KEYS,
                webhooks_per_second=2_000.0,
                randomness=random.Random(3),
                clock=SystemClock(),
                stop=anyio.Event(),
                first_retry_seconds=0.01,
            )
            stop.set()
    sent = {
        (f"{listener.local_url}{request.path}", request.body): request.event_id
        for request in requests
    }
    assert set(asked) == set(sent)
    assert min(asked.values()) > 1
    assert counters.taken == Counter(request.source for request in requests)
    assert len(counters.taken) == 11
    assert counters.given_up == {}
    assert counters.answers.total() == len(requests) + len(sent)
    assert {"0", "1"} <= set(retried)


async def test_the_rate_is_kept_by_scripts_without_end() -> None:
    time = VirtualTime()
    time.stop_at = 240.0
    counters = await send(time, None, take, per_second=5.0)
    assert counters.attempts == pytest.approx(240 * 5, rel=0.1)
    assert {status for _, status in counters.answers} == {200}
    assert len(counters.taken) == 10


def test_each_script_tells_of_what_is_known_by_then() -> None:
    learnt = Learnt()
    scripts = endless_scripts(KEYS, ManualClock(), random.Random(1), DISORDERLY, learnt.take)
    by_source = {request.source for request in next(scripts)}
    assert "msg91" not in by_source
    learnt.landed("0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a")
    learnt.asked_for_sms("0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5b")
    learnt.asked_for_email("0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5c")
    requests = next(scripts)
    assert len({request.source for request in requests}) == 11
    told = {(told.thing.kind, told.thing.id) for each in requests for told in each.event.told}
    assert ("sms", "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5b") in told
    assert ("email", "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5c") in told
    networks = {"admitad", "vcommission", "cuelinks", "cj"}
    postbacks = [each for each in requests if each.source in networks]
    click = "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a"
    assert all(click in each.path or click.encode() in each.body for each in postbacks)
    # Their lives are told of once.
    assert "msg91" not in {request.source for request in next(scripts)}


async def test_nothing_is_sent_before_its_time_and_what_is_late_is_signed_late() -> None:
    time = VirtualTime()
    began = time.clock.now()
    requests = script(random.Random(5), KEYS, began, 36, DISORDERLY)
    due = {}
    for request in requests:
        due.setdefault(request.body, request.not_before_seconds)
    signed_for: list[float] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        assert time.clock.now() - began >= due[request.content] - 0.001
        if "stripe-signature" in request.headers:
            signed_at = request.headers["stripe-signature"].partition(",")[0].removeprefix("t=")
            signed_for.append(time.clock.now() - int(signed_at))
        return httpx2.Response(204)

    counters = await send(time, [requests], answer, per_second=500.0)
    assert counters.taken.total() == len(requests)
    assert time.clock.now() - began > 60.0
    assert all(0 <= seconds < 1 for seconds in signed_for)
    assert len(signed_for) > 5


async def test_an_event_that_is_never_taken_is_given_up_after_waits_that_double() -> None:
    time = VirtualTime()
    moments: list[float] = []

    async def refuse(_: httpx2.Request) -> httpx2.Response:
        moments.append(time.clock.monotonic())
        return httpx2.Response(503)

    counters = await send(time, [[sign(EVENT, KEYS, time.clock.now())]], refuse, per_second=1e4)
    waits = [later - earlier for earlier, later in pairwise(moments)]
    assert len(moments) == MAX_ATTEMPTS
    assert (counters.taken, counters.given_up) == ({}, {"stripe": 1})
    assert counters.answers == {("stripe", 503): MAX_ATTEMPTS}
    for attempt, seconds in enumerate(waits):
        longest = min(0.5 * 2**attempt, 30.0)
        assert longest / 2 <= seconds <= longest + 0.01


async def test_trouble_is_counted_and_logged_at_a_bounded_rate_and_never_raised() -> None:
    time = VirtualTime()
    number = 0

    async def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal number
        number += 1
        match number % 4:
            case 0:
                raise httpx2.ConnectError("refused", request=request)
            case 1:
                raise httpx2.ReadTimeout("slow", request=request)
            case 2:
                return httpx2.Response(429)
            case _:
                return httpx2.Response(200)

    requests = script(random.Random(6), KEYS, time.clock.now(), 24, DISORDERLY)
    with capture_logs() as logs:
        counters = await send(time, [requests], answer)
    assert counters.taken.total() + counters.given_up.total() == len(requests)
    failures = Counter(name for (_, name), count in counters.failures.items() for _ in range(count))
    quarter = counters.attempts / 4
    assert failures["ConnectError"] == pytest.approx(quarter, abs=1)
    assert failures["ReadTimeout"] == pytest.approx(quarter, abs=1)
    warnings = [line for line in logs if line["event"] == "webhook_not_taken"]
    assert 2 <= len(warnings) <= time.clock.monotonic() / 10 + 1


async def test_a_target_that_hangs_bounds_what_is_in_flight() -> None:
    time, gate, waiting = VirtualTime(), anyio.Event(), 0
    counters = WebhookCounters()

    async def hang(_: httpx2.Request) -> httpx2.Response:
        nonlocal waiting
        waiting += 1
        await gate.wait()
        return httpx2.Response(200)

    async def send_all() -> None:
        await send(time, None, hang, counters=counters)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_all)
            await anyio.wait_all_tasks_blocked()
            assert waiting == MAX_IN_FLIGHT
            assert counters.attempts == 0
            time.stop_at = time.clock.monotonic() + 10.0
            gate.set()
    assert counters.attempts > MAX_IN_FLIGHT


class Handle:
    """What the supervisor would hand to a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()

    def started(self) -> None:
        return None


async def test_the_role_sends_until_it_is_told_to_stop() -> None:
    handle, arrived = Handle(), Counter[str]()
    every_path = {
        *("razorpay", "stripe", "sendgrid", "admitad", "vcommission", "cuelinks", "cj", "api"),
        *("easypost", "parcels"),
    }

    async def receive(request: Request) -> Response:
        if request.path_params["path"] != "health":
            arrived[request.path_params["path"].partition("/")[0]] += 1
        if set(arrived) >= every_path:
            handle.stopping.set()
        return Response()

    app = Starlette(routes=[Route("/{path:path}", receive, methods=["GET", "POST"])])
    listener = Listener("127.0.0.1", free_port("127.0.0.1"), "hypercorn")
    stop, up = anyio.Event(), anyio.Event()
    role = senders_role(
        WebhookTrafficParts(
            base_url=listener.local_url,
            keys=KEYS,
            webhooks_per_second=500.0,
            clock=SystemClock(),
            randomness=random.Random(4),
            chaos=RUSHED,
        )
    )
    assert role.name == "senders"
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(app, listener, stopping=stop, started=up.set)

            tasks.start_soon(run)
            await up.wait()
            await role.run(handle)
            stop.set()
    assert set(arrived) == every_path


def test_counters_describe_themselves() -> None:
    counters = WebhookCounters()
    assert counters.describe() == "0 sent; answers: none; taken: none"
    counters.answers.update({("stripe", 200): 2, ("cj", 200): 1, ("cj", 503): 3})
    counters.failures.update({("stripe", "ConnectError"): 1})
    counters.taken.update({"stripe": 2, "cj": 1})
    counters.given_up.update({"cj": 1})
    assert counters.describe() == (
        "7 sent; answers: 3 x 200, 3 x 503; taken: 1 cj, 2 stripe; 1 without an answer; 1 given up"
    )
