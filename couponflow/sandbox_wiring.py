"""The wiring of the sandbox: the simulated outside world of `couponflow run --demo`."""

import random
from collections.abc import Mapping
from functools import partial

from couponflow.catalogue.sample import sample_offers, sample_users
from couponflow.config import Settings
from couponflow.kernel.clock import Clock
from couponflow.kernel.http import Listener
from couponflow.kernel.role import Role
from couponflow.kernel.tokens import mint
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
from couponflow.sandbox.senders.keys import SenderKeys
from couponflow.sandbox.shoppers import ShopperLink


def sandbox_roles(
    settings: Settings,
    listeners: Mapping[str, Listener],
    clock: Clock,
    *,
    traffic: bool,
    sender_keys: SenderKeys | None,
) -> list[Role]:
    """The networks, and with `traffic` whoever calls a listener that is here.

    They tell each other what they were given: a network the click ids that shoppers bring, the shop
    the ids of the notifications it asked for. Without the API there is no shop, so that nobody
    reports on emails and SMS, and MSG91 has nothing to send.
    """
    learnt = Learnt()
    roles = [networks_role(NetworksParts(listener=listeners["sandbox"], learnt=learnt))]
    if traffic and "redirect" in listeners:
        shoppers = ShoppersParts(
            base_url=listeners["redirect"].local_url,
            links=[
                ShopperLink(f"/out/{offer.merchant_slug}/{offer.offer_id}")
                for offer in sample_offers()
            ],
            users=[user.user_id for user in sample_users()],
            shoppers_per_second=settings.sandbox.shoppers_per_second,
            clock=clock,
            randomness=random.Random(),  # noqa: S311 - made-up shoppers
            networks_url=listeners["sandbox"].local_url,
        )
        roles.append(shoppers_role(shoppers))
    if traffic and "api" in listeners and not settings.api.jwks_file:
        shop = ShopParts(
            base_url=listeners["api"].local_url,
            make_token=partial(mint, settings, clock, role="service", subject="shop", hours=1),
            learnt=learnt,
            clock=clock,
            randomness=random.Random(),  # noqa: S311 - made-up orders
        )
        roles.append(shop_role(shop))
    if traffic and "webhooks" in listeners and sender_keys is not None:
        senders = WebhookTrafficParts(
            base_url=listeners["webhooks"].local_url,
            keys=sender_keys,
            webhooks_per_second=settings.sandbox.webhooks_per_second,
            clock=clock,
            randomness=random.Random(),  # noqa: S311 - made-up events
            learnt=learnt,
        )
        roles.append(senders_role(senders))
    return roles
