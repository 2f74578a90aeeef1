"""Everything one role can say to another, and the channel it is said on.

A message is a frozen msgspec struct with a versioned tag, so that JSON written by an older
version still decodes and another program can write a well-formed message itself. Roles never
import each other; they meet here.
"""

from typing import ClassVar, Literal

import msgspec

Verdict = Literal["human", "bot", "prefetch", "duplicate"]
"""What couponflow thinks of a click. Every click is stored, whatever its verdict."""


class Message(msgspec.Struct, frozen=True, tag_field="type", gc=False):
    """One thing said by a role, on the channel its class names."""

    channel: ClassVar[str]


class Click(Message, tag="click.v1", frozen=True, gc=False):
    """A shopper followed a tracked link and was answered with a redirect.

    Ids are UUIDs in their canonical lower-case text. `click_id` is also the sub-id in the
    merchant's link and the correlation id of everything that follows from the click.
    `clicked_at` is in seconds since the epoch.
    """

    channel: ClassVar[str] = "clicks"

    click_id: str
    merchant_id: str
    offer_id: str
    user_id: str
    clicked_at: float
    ip: str
    user_agent: str
    referer: str
    verdict: Verdict


CHANNELS: dict[str, type[Message]] = {message.channel: message for message in (Click,)}
"""The message type each channel carries."""
