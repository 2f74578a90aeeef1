"""What every sender is behind: verify, identify, and later translate.

Intake verifies a `Delivery` over the bytes as they came and asks what it is called; both are quick
and touch nothing but the delivery. When it is in `webhook_logs`, the role `inbox` has the same
source translate it into messages of couponflow.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from couponflow.messages import Message

RefusalReason = Literal["bad-signature", "stale", "forbidden-address"]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a sender, as it came."""

    method: str
    token: str = ""
    """What followed the source's path: `t0k3n` in `POST /msg91/t0k3n`; percent-decoded."""
    query: str = ""
    """The raw query string."""
    headers: Mapping[str, str] = {}
    """The source's `header_names` that were there, in lower case; several of a name are joined by
    a comma."""
    body: bytes = b""
    address: str = ""
    """Who called, trusted proxies aside."""
    received_at: float
    """Seconds since the epoch."""


class Refused(msgspec.Struct, frozen=True):
    """Why a delivery is not believed; the detail is for our log, never for the caller."""

    reason: RefusalReason
    detail: str


class Identity(msgspec.Struct, frozen=True):
    """What an event is called by its sender."""

    event_type: str = ""
    event_id: str = ""
    """Unique within the source, the same on every redelivery; empty where the sender has none, and
    the hash of query and body stands in."""


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A verified event as `webhook_logs` has it."""

    webhook_id: str
    event_type: str
    event_id: str
    """The sender's, else `sha256:` and the hash."""
    method: str
    query: str
    """Without secrets: as `Source.public_query` gave it."""
    headers: Mapping[str, str]
    body: bytes
    received_at: float


class Translated(msgspec.Struct, frozen=True):
    """A message that follows from an event."""

    message: Message
    event_id: str = ""
    """Of the part of the event that it follows from, where a delivery holds several events that
    may come again in another delivery; empty is the delivery's own and the message's place."""


class EventUnreadable(Exception):
    """A verified event is not what its sender is known to send; the text says what is wrong.

    Its effect cannot be found out: it becomes a dead letter. Look at it with `couponflow webhooks
    show`; if the sender has changed its format, this version of couponflow is too old for it.
    """


class SendersInvalid(Exception):
    """What a sender of webhooks is to be verified with cannot be used; the text says which.

    Mend the key it names; `couponflow check` shows whether it is right.
    """


class Source(Protocol):
    """One sender. Its methods never block, and raise nothing but what they say."""

    @property
    def name(self) -> str:
        """As in its path, in metrics and in `webhook_logs`."""
        ...

    @property
    def methods(self) -> frozenset[str]: ...

    @property
    def header_names(self) -> Sequence[str]:
        """The headers it looks at, in lower case."""
        ...

    @property
    def secret_header_names(self) -> frozenset[str]:
        """Those of them that are never written down."""
        ...

    def verify(self, delivery: Delivery) -> Refused | None:
        """Whether the sender made it, in constant time and over the bytes as they came."""
        ...

    def identify(self, delivery: Delivery) -> Identity:
        """What it is called, as far as that can be read; of a verified delivery."""
        ...

    def public_query(self, delivery: Delivery) -> str:
        """The part of the query string that the sender vouches for, without secrets."""
        ...

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        """The messages that follow; none for what does not concern us.

        The same event gives the same messages, at any time. Raises `EventUnreadable`.
        """
        ...
