"""The wiring of the roles that consume a channel with handlers, and of the senders of webhooks."""

from collections.abc import Callable, Mapping, Sequence

from couponflow.cashback.role import CASHBACK_HANDLERS, cashback_role
from couponflow.checkout.role import checkout_handlers, checkout_role
from couponflow.config import KEYS, SENDER_SECTIONS, SOURCE_SECRETS, Settings
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
            raise SendersInvalid(_labelled(str(error))) from error
        self.on = tuple(open_sources(settings))
        """The names of those that have a secret."""
        self.live_secrets: Mapping[str, int] = _live_secrets(settings)
        """How many secrets each sender has."""
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


def _labelled(problem: str) -> str:
    """What a sender says of a key of its own, which then has its section and its variable."""
    named = problem.partition(":")[0]
    owners = [KEYS[path] for path in SOURCE_SECRETS if KEYS[path].name == named]
    # Several senders may have a key of one name; then it cannot be told whose it is.
    if len(owners) == 1:
        return f"{owners[0].label}{problem.removeprefix(named)}"
    for key in KEYS.values():
        if problem.startswith((f"{key.written} ", f"{key.written}: ")):
            return f"{key.label}{problem.removeprefix(key.written)}"
    return problem


def _live_secrets(settings: Settings) -> dict[str, int]:
    found: dict[str, set[str]] = {section: set() for section in SENDER_SECTIONS}
    for path in SOURCE_SECRETS:
        key = KEYS[path]
        value: str | tuple[str, ...] = getattr(getattr(settings, key.section), key.name)
        found[key.section].update((value,) if isinstance(value, str) else value)
    for name, generic in settings.generic_webhooks.items():
        found[f"generic/{name}"] = set(generic.secrets)
    return {name: sum(bool(secret.strip()) for secret in each) for name, each in found.items()}


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
