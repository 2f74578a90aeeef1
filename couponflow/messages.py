"""Everything one role can say to another, and the channel it is said on.

A message is a frozen msgspec struct with a versioned tag, so that JSON written by an older
version still decodes and another program can write a well-formed message itself. Roles never
import each other; they meet here.
"""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

Verdict = Literal["human", "bot", "prefetch", "duplicate"]
"""What couponflow thinks of a click. Every click is stored, whatever its verdict."""

# `\Z`, for `$` also matches before a line break at the end. A line break in a header begins
# another header, and PostgreSQL's text holds no NUL.
_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
_NO_NUL = r"^[^\x00]*\Z"
_ADDRESS = r"^[^@\s\x00-\x1f\x7f-\x9f]+@[^@\s\x00-\x1f\x7f-\x9f]+\Z"
_E164 = r"^\+[1-9][0-9]{6,14}\Z"


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


class EmailRequested(Message, tag="email.v1", frozen=True, gc=False):
    """Somebody is to be told something by email."""

    channel: ClassVar[str] = "emails"

    to: Annotated[str, Meta(min_length=3, max_length=320, pattern=_ADDRESS)]
    subject: Annotated[str, Meta(min_length=1, max_length=998, pattern=_ONE_LINE)]
    # Together less than the 1 MiB that a stream takes, however much of it is escaped in JSON.
    text: Annotated[str, Meta(max_length=60_000, pattern=_NO_NUL)]
    html: Annotated[str, Meta(max_length=100_000, pattern=_NO_NUL)] = ""


class SmsRequested(Message, tag="sms.v1", frozen=True, gc=False):
    """Somebody is to be told something by SMS; `to` is an E.164 number with its plus sign."""

    channel: ClassVar[str] = "sms"

    to: Annotated[str, Meta(pattern=_E164)]
    text: Annotated[str, Meta(min_length=1, max_length=1600, pattern=_NO_NUL)]


CHANNELS: dict[str, type[Message]] = {
    message.channel: message for message in (Click, EmailRequested, SmsRequested)
}
"""The message type each channel carries."""
