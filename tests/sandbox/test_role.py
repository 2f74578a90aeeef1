"""The sandbox's roles start, meet each other over real sockets, and stop when they are told to."""

import random

import anyio
import httpx2

from couponflow.kernel.clock import SystemClock
from couponflow.kernel.http import Listener, free_port
from couponflow.kernel.role import Role, Stage
from couponflow.sandbox.role import NetworksParts, ShoppersParts, networks_role, shoppers_role
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
