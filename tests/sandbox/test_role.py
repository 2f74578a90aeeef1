"""The sandbox's roles start, meet each other over real sockets, and stop when they are told to."""

import random

import anyio
import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from couponflow.kernel.clock import SystemClock
from couponflow.kernel.http import Listener, free_port, serve
from couponflow.kernel.role import Role, Stage
from couponflow.sandbox.learnt import Learnt
from couponflow.sandbox.role import (
    NetworksParts,
    ShopParts,
    ShoppersParts,
    WebhookTrafficParts,
    networks_role,
    senders_role,
    shop_role,
    shoppers_role,
)
from couponflow.sandbox.senders.keys import demo_keys
from couponflow.sandbox.shoppers import ShopperLink

USER = "11111111-0000-4000-8000-000000000001"


class Handle:
    """What the supervisor would hand to a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.up = anyio.Event()

    def started(self) -> None:
        self.up.set()


async def run(role: Role, handle: Handle) -> None:
    await role.run(handle)


async def test_shoppers_reach_the_networks_and_both_stop() -> None:
    listener = Listener("127.0.0.1", free_port("127.0.0.1"), "hypercorn")
    networks = networks_role(NetworksParts(listener))
    shoppers = shoppers_role(
        ShoppersParts(
            base_url=listener.local_url,
            links=[ShopperLink("/cuelinks/?url=https://shop.example/&subid=")],
            users=[USER],
            shoppers_per_second=200.0,
            clock=SystemClock(),
            randomness=random.Random(3),
        )
    )
    assert (networks.name, shoppers.name) == ("networks", "shoppers")
    assert networks.stage is shoppers.stage is Stage.INTAKE
    serving, sending = Handle(), Handle()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, networks, serving)
            await serving.up.wait()
            tasks.start_soon(run, shoppers, sending)
            await sending.up.wait()
            async with httpx2.AsyncClient(base_url=listener.local_url, verify=False) as client:
                while (await client.get("/arrivals")).json()["by_network"]["cuelinks"] < 20:
                    await anyio.wait_all_tasks_blocked()
            sending.stopping.set()
            serving.stopping.set()


async def test_shoppers_whose_target_is_not_there_go_on_until_they_are_told_to_stop() -> None:
    handle = Handle()
    role = shoppers_role(
        ShoppersParts(
            base_url=f"http://127.0.0.1:{free_port('127.0.0.1')}",
            links=[ShopperLink("/out/store/00000000-0000-4000-8000-000000000001")],
            users=[USER],
            shoppers_per_second=100.0,
            clock=SystemClock(),
            randomness=random.Random(4),
        )
    )
    ended = anyio.Event()

    async def run_to_the_end() -> None:
        await run(role, handle)
        ended.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_to_the_end)
            await handle.up.wait()
            await anyio.wait_all_tasks_blocked()
            assert not ended.is_set()
            handle.stopping.set()
            await ended.wait()


class Couponflow:
    """What a daemon is to the sandbox: three ports that are one here, and not open at once."""

    def __init__(self, networks_url: str) -> None:
        self.listener = Listener("127.0.0.1", free_port("127.0.0.1"), "hypercorn")
        self.networks_url = networks_url
        self.called: set[str] = set()
        self.changed = anyio.Event()

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        first = request.path_params["path"].partition("/")[0]
        is_api = request.url.path.startswith("/api/v1/")
        self.called.add("shop" if is_api else first)
        self.changed.set()
        self.changed = anyio.Event()
        if first == "out":
            return RedirectResponse(f"{self.networks_url}/cuelinks/?subid=a-click", 302)
        return JSONResponse({"message_id": "an-email"}, 202 if is_api else 200)

    async def called_by(self, *callers: str) -> None:
        while not self.called >= set(callers):
            await self.changed.wait()


async def test_nobody_calls_a_daemon_before_its_ports_are_open_and_all_learn_from_it() -> None:
    networks = Listener("127.0.0.1", free_port("127.0.0.1"), "hypercorn")
    daemon, handle, learnt = Couponflow(networks.local_url), Handle(), Learnt()
    base_url, clock, randomness = daemon.listener.local_url, SystemClock(), random.Random(5)
    callers = [
        shoppers_role(
            ShoppersParts(
                base_url=base_url,
                links=[ShopperLink("/out/store/00000000-0000-4000-8000-000000000001")],
                users=[USER],
                shoppers_per_second=100.0,
                clock=clock,
                randomness=randomness,
                networks_url=networks.local_url,
            )
        ),
        shop_role(ShopParts(base_url, lambda: "token", learnt, clock, randomness)),
        senders_role(
            WebhookTrafficParts(
                base_url=base_url,
                keys=demo_keys(randomness),
                webhooks_per_second=100.0,
                clock=clock,
                randomness=randomness,
                learnt=learnt,
            )
        ),
    ]
    with anyio.fail_after(20), capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            for role in callers:
                assert role.stage is Stage.INTAKE
                tasks.start_soon(run, role, handle)
            await handle.up.wait()
            await anyio.wait_all_tasks_blocked()
            assert daemon.called == set()
            tasks.start_soon(run, networks_role(NetworksParts(networks, learnt)), handle)

            async def serve_daemon() -> None:
                await serve(
                    daemon.app(), daemon.listener, stopping=handle.stopping, started=lambda: None
                )

            tasks.start_soon(serve_daemon)
            await daemon.called_by("out", "shop", "razorpay", "admitad")
            while not (known := learnt.take()).click_ids:
                await anyio.wait_all_tasks_blocked()
            handle.stopping.set()
    assert set(known.click_ids) == {"a-click"}
    left = {"shoppers_left", "shop_left", "senders_left"}
    assert {line["event"] for line in logs if line["log_level"] == "warning"} == set()
    assert {line["event"] for line in logs} >= left
