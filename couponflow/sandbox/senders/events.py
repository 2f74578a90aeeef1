"""What the simulated providers tell, before and after it is signed."""

from collections.abc import Mapping
from typing import Literal

import msgspec

SenderName = Literal[
    "razorpay",
    "stripe",
    "sendgrid",
    "msg91",
    "admitad",
    "vcommission",
    "cuelinks",
    "cj",
    "qstash",
    "easypost",
    "shiprocket",
]
NetworkName = Literal["admitad", "vcommission", "cuelinks", "cj"]
Kind = Literal[
    "order", "payment", "refund", "payout", "shipment", "transaction", "email", "sms", "stock"
]


class Thing(msgspec.Struct, frozen=True):
    """Something whose state events tell."""

    kind: Kind
    id: str
    provider: str = ""
    """Whose id it is; empty is the shop's own."""


class Told(msgspec.Struct, frozen=True):
    """That a thing was in a state, in couponflow's words (couponflow/messages.py)."""

    thing: Thing
    state: str
    at: int
    """Seconds since the epoch; two states of one thing are never of the same second."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a provider tells in one request; it becomes a request by being signed."""

    source: SenderName
    event_id: str
    """The same on every delivery: the provider's own, or what would be if it had one."""
    event_type: str = ""
    method: Literal["GET", "POST"] = "POST"
    query: str = ""
    content_type: str = "application/json"
    body: bytes = b""
    told: tuple[Told, ...] = ()

    @property
    def subject(self) -> str:
        """The id of what it is about first of all, as a payment's; empty where that is nothing."""
        return self.told[0].thing.id if self.told else ""


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery of an event, ready to be sent."""

    event: Event
    method: str
    path: str
    """With the query."""
    headers: Mapping[str, str]
    body: bytes
    retried: int = 0
    """How many deliveries of the event came before this one."""
    not_before_seconds: float = 0.0
    """From the beginning of the script."""

    @property
    def source(self) -> SenderName:
        return self.event.source

    @property
    def event_id(self) -> str:
        return self.event.event_id

    @property
    def subject(self) -> str:
        return self.event.subject
