"""The wiring of the roles that consume a channel with handlers, and of the senders of webhooks."""

from collections.abc import Callable, Mapping, Sequence

from couponflow.cashback.role import CASHBACK_HANDLERS, cashback_role
from couponflow.checkout.role import checkout_handlers, checkout_role
from couponflow.config import SENDER_SECTIONS, Settings
from couponflow.config_sources import SourceSettings
from couponflow.kernel.consumer import ConsumerParts
from couponflow.kernel.handlers import Handler, HandlerPolicy, RetryPolicy
from couponflow.kernel.role import Role
from couponflow.message_wiring import Messaging
from couponflow.notify.role import email_handlers, email_role, sms_handlers, sms_role
from couponflow.webhooks.contract import SendersInvalid, Source
from couponflow.webhooks.inbox import Inbox
from couponflow.webhooks.role import inbox_role
from couponflow.webhooks.sources.registry import known_sources, open_sources, paths


class Senders:
    """The senders that are set up in this daemon; raises `SendersInvalid`."""

    def __init__(self, settings: Settings) -> None:
        try:
            self.by_name: Mapping[str, Source] = known_sources(settings)
            """All there are: to translate an event needs no secret."""
        except ValueError as error:
            raise SendersInvalid(str(error)) from error
        self.on = tuple(open_sources(settings))
        """The names of those that have a secret."""
        self.by_path: Mapping[str, Source] = paths(
            settings, {name: self.by_name[name] for name in self.on}
        )
        """Without the path's slash."""
        self.settings: Mapping[str, SourceSettings] = {
            **{section: getattr(settings, section) for section in SENDER_SECTIONS},
            **{f"generic/{name}": each for name, each in settings.generic_webhooks.items()},
        }
        """By the source's name."""
        self.cors: Mapping[str, Sequence[str]] = {"api/webhook": settings.qstash.cors_origins}
        """The origins whose pages may call a path."""


def worker_roles(
    roles: Sequence[str], settings: Settings, messaging: Messaging, senders: Senders
) -> list[Role]:
    """Those of the roles that consume a channel with handlers."""
    webhooks = settings.webhooks
    reports = HandlerPolicy(
        retry=RetryPolicy(
            max_attempts=webhooks.report_attempts, first_seconds=webhooks.report_first_seconds
        )
    )
    workers: dict[str, tuple[Callable[[ConsumerParts], Role], str, Sequence[Handler]]] = {
        "email": (email_role, "emails", email_handlers(reports)),
        "sms": (sms_role, "sms", sms_handlers(reports)),
        "cashback": (cashback_role, "cashback", CASHBACK_HANDLERS),
        "checkout": (checkout_role, "orders", checkout_handlers(reports)),
        "inbox": (inbox_role, "webhooks", Inbox(senders.by_name).handlers()),
    }
    return [
        build(messaging.consumer_parts(channel, handlers))
        for role, (build, channel, handlers) in workers.items()
        if role in roles
    ]
