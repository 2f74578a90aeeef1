"""The sandbox's three roles: the networks shoppers are led to, the shoppers, and all who send
webhooks.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from couponflow.kernel.clock import Clock
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.sandbox.networks import networks_app
from couponflow.sandbox.senders.keys import SenderKeys
from couponflow.sandbox.senders.script import DISORDERLY, Chaos
from couponflow.sandbox.shoppers import ShopperLink, send_shoppers
from couponflow.sandbox.webhook_traffic import endless_scripts, send_webhooks

_log = structlog.get_logger("couponflow.sandbox")


@dataclass(frozen=True, slots=True)
class NetworksParts:
    """What the simulated networks are built from."""

    listener: Listener


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


def networks_role(parts: NetworksParts) -> Role:
    """The click servers of the four networks, on one port."""
    return Role("networks", Stage.INTAKE, partial(_run_networks, parts))


def shoppers_role(parts: ShoppersParts) -> Role:
    """People, crawlers and browsers who follow tracked links until the daemon stops."""
    return Role("shoppers", Stage.INTAKE, partial(_run_shoppers, parts))


def senders_role(parts: WebhookTrafficParts) -> Role:
    """All providers, who send what they should and how they should not, until the daemon stops."""
    return Role("senders", Stage.INTAKE, partial(_run_webhooks, parts))


async def _run_networks(parts: NetworksParts, handle: RoleHandle) -> None:
    await serve(networks_app(), parts.listener, stopping=handle.stopping, started=handle.started)


async def _run_shoppers(parts: ShoppersParts, handle: RoleHandle) -> None:
    handle.started()
    counters = await send_shoppers(
        parts.base_url,
        parts.links,
        parts.users,
        shoppers_per_second=parts.shoppers_per_second,
        randomness=parts.randomness,
        clock=parts.clock,
        stop=handle.stopping,
    )
    _log.info("shoppers_left", summary=counters.describe())


async def _run_webhooks(parts: WebhookTrafficParts, handle: RoleHandle) -> None:
    handle.started()
    counters = await send_webhooks(
        parts.base_url,
        endless_scripts(parts.keys, parts.clock, parts.randomness, parts.chaos),
        parts.keys,
        webhooks_per_second=parts.webhooks_per_second,
        randomness=parts.randomness,
        clock=parts.clock,
        stop=handle.stopping,
    )
    _log.info("senders_left", summary=counters.describe())
