"""Reading what senders wrote: the parts of a body that are needed, and nothing that is odd."""

import re
from typing import TypeVar

import msgspec

from couponflow.webhooks.contract import EventUnreadable

T = TypeVar("T")

# Nor what PostgreSQL does not store: half a character.
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")


def read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body, as the decoder's type. Raises `EventUnreadable`, which says what is wrong."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise EventUnreadable(str(error)) from error


def peek(decoder: msgspec.json.Decoder[T], body: bytes) -> T | None:
    """The body, as the decoder's type; None where it is not."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError):
        return None


def called(name: str) -> str:
    """What a sender calls a thing; empty where that cannot be a name."""
    return name if _NAME.fullmatch(name) else ""
