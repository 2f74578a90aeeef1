"""The sandbox's roles: the networks shoppers are led to, the shoppers, a shop that has people told
things, and all who send webhooks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.sandbox.learnt import Learnt
from couponflow.sandbox.networks import networks_app
from couponflow.sandbox.senders.keys import SenderKeys
from couponflow.sandbox.senders.script import DISORDERLY, Chaos
from couponflow.sandbox.sending import wait_until_open
from couponflow.sandbox.shop import ask_for_notifications
from couponflow.sandbox.shoppers import ShopperLink, send_shoppers
from couponflow.sandbox.webhook_traffic import endless_scripts, send_webhooks

_log = structlog.get_logger("couponflow.sandbox")


@dataclass(frozen=True, slots=True)
class NetworksParts:
    """What the simulated networks are built from."""

    listener: Listener
    learnt: Learnt = field(default_factory=Learnt)


@dataclass(frozen=True, slots=True)
class ShoppersParts:
    """What the stream of shoppers is built from."""

    base_url: str
    """Of the redirector."""
    links: Sequence[ShopperLink]
    """The most popular first."""
    users: Sequence[str]
    shoppers_per_second: float
    clock: Clock
    randomness: random.Random
    networks_url: str = ""
    """Where their redirects lead; empty lets them stay."""


@dataclass(frozen=True, slots=True)
class ShopParts:
    """What the shop is built from."""

    base_url: str
    """Of the API."""
    make_token: Callable[[], str]
    """For the role `service`, good for some time."""
    learnt: Learnt
    clock: Clock
    randomness: random.Random


@dataclass(frozen=True, slots=True)
class WebhookTrafficParts:
    """What the stream of webhooks is built from."""

    base_url: str
    """Of the webhook intake."""
    keys: SenderKeys
    """The intake is set up with `settings_of` them."""
    webhooks_per_second: float
    clock: Clock
    randomness: random.Random
    chaos: Chaos = DISORDERLY
    learnt: Learnt = field(default_factory=Learnt)
    """What the others in the sandbox were given, and events can tell of."""


def networks_role(parts: NetworksParts) -> Role:
    """The click servers of the four networks, on one port."""
    return Role("networks", Stage.INTAKE, partial(_run_networks, parts))


def shoppers_role(parts: ShoppersParts) -> Role:
    """People, crawlers and browsers who follow tracked links until the daemon stops."""
    return Role("shoppers", Stage.INTAKE, partial(_run_shoppers, parts))


def shop_role(parts: ShopParts) -> Role:
    """A program that asks for emails and SMS through the API until the daemon stops."""
    return Role("shop", Stage.INTAKE, partial(_run_shop, parts))


def senders_role(parts: WebhookTrafficParts) -> Role:
    """All providers, who send what they should and how they should not, until the daemon stops."""
    return Role("senders", Stage.INTAKE, partial(_run_webhooks, parts))


async def _run_networks(parts: NetworksParts, handle: RoleHandle) -> None:
    app = networks_app(parts.learnt.landed)
    await serve(app, parts.listener, stopping=handle.stopping, started=handle.started)


async def _run_shoppers(parts: ShoppersParts, handle: RoleHandle) -> None:
    handle.started()
    await _until_open(handle, parts.base_url, parts.networks_url)
    counters = await send_shoppers(
        parts.base_url,
        parts.links,
        parts.users,
        shoppers_per_second=parts.shoppers_per_second,
        randomness=parts.randomness,
        clock=parts.clock,
        stop=handle.stopping,
        networks_url=parts.networks_url,
    )
    _log.info("shoppers_left", summary=counters.describe())


async def _run_shop(parts: ShopParts, handle: RoleHandle) -> None:
    handle.started()
    await _until_open(handle, parts.base_url)
    taken = await ask_for_notifications(
        parts.base_url,
        parts.make_token,
        parts.learnt,
        randomness=parts.randomness,
        clock=parts.clock,
        stop=handle.stopping,
    )
    _log.info("shop_left", emails=taken["emails"], sms=taken["sms"])


async def _run_webhooks(parts: WebhookTrafficParts, handle: RoleHandle) -> None:
    handle.started()
    await _until_open(handle, parts.base_url)
    counters = await send_webhooks(
        parts.base_url,
        endless_scripts(parts.keys, parts.clock, parts.randomness, parts.chaos, parts.learnt.take),
        parts.keys,
        webhooks_per_second=parts.webhooks_per_second,
        randomness=parts.randomness,
        clock=parts.clock,
        stop=handle.stopping,
    )
    _log.info("senders_left", summary=counters.describe())


async def _until_open(handle: RoleHandle, *base_urls: str) -> None:
    """All roles of a daemon start at once: whoever called at once would find the port closed."""
    for base_url in filter(None, base_urls):
        await wait_until_open(base_url, handle.stopping)
