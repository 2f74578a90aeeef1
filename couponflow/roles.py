"""Which roles there are, what they say and hear, and what `--roles` may name."""

from collections.abc import Sequence
from typing import NamedTuple

from couponflow.messages import (
    Click,
    EmailRequested,
    OrderCreated,
    SmsRequested,
    TransactionReported,
    WebhookAccepted,
)


class Wiring(NamedTuple):
    """The channels a role is tied to."""

    produces: frozenset[str] = frozenset()
    consumes: frozenset[str] = frozenset()


_REPORTED = frozenset(
    message.channel for message in (EmailRequested, SmsRequested, TransactionReported, OrderCreated)
)
"""The channels on which the inbox passes on what webhooks tell."""

ROLES: dict[str, Wiring] = {
    "redirect": Wiring(produces=frozenset({Click.channel})),
    "webhooks": Wiring(produces=frozenset({WebhookAccepted.channel})),
    "api": Wiring(),
    "clicks": Wiring(consumes=frozenset({Click.channel})),
    "email": Wiring(consumes=frozenset({EmailRequested.channel})),
    "sms": Wiring(consumes=frozenset({SmsRequested.channel})),
    "cashback": Wiring(consumes=frozenset({TransactionReported.channel})),
    "checkout": Wiring(consumes=frozenset({OrderCreated.channel})),
    "inbox": Wiring(consumes=frozenset({WebhookAccepted.channel}), produces=_REPORTED),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(ROLES),
    "workers": ("clicks", "email", "sms", "cashback", "checkout", "inbox"),
}


class RolesInvalid(Exception):
    """`--roles` names a role that does not exist, or leaves one out that another needs.

    The text says which, and what to add.
    """


def parse_roles(text: str, *, in_memory: bool) -> tuple[str, ...]:
    """Role and group names, separated by commas, as roles in their usual order.

    `in_memory` says that channels do not leave this process.
    """
    wanted: set[str] = set()
    for name in filter(None, (piece.strip() for piece in text.split(","))):
        if name not in GROUPS and name not in ROLES:
            known = f"Roles: {', '.join(ROLES)}. Groups: {', '.join(GROUPS)}."
            raise RolesInvalid(f"there is no role {name!r}. {known}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise RolesInvalid("no role is named; leave --roles out to run everything.")
    chosen = tuple(role for role in ROLES if role in wanted)
    if in_memory:
        _require_consumers(chosen)
    return chosen


def _require_consumers(chosen: Sequence[str]) -> None:
    """In memory, what one role says another role of the same process has to hear."""
    consumed = frozenset[str]().union(*(ROLES[role].consumes for role in chosen))
    for role in chosen:
        for channel in sorted(ROLES[role].produces - consumed):
            listeners = [name for name, wiring in ROLES.items() if channel in wiring.consumes]
            raise RolesInvalid(
                f"role {role!r} produces on the channel {channel!r}, but no role here consumes it, "
                "and channels in memory do not leave this process. "
                f"Add {' or '.join(listeners)} (or workers) to --roles, or set REDIS_URL."
            )
