"""Whether a message that a source made is one that its channel takes."""

from typing import TypeVar

import msgspec

from couponflow.messages import Message
from couponflow.webhooks.contract import EventUnreadable

M = TypeVar("M", bound=Message)


def checked(message: M) -> M:
    """The message, when its fields keep to their types, lengths and patterns.

    A struct's constructor looks at none of that. Raises `EventUnreadable`, which names the field.
    """
    return message_of(type(message), msgspec.to_builtins(message))


def message_of(message_type: type[M], fields: object) -> M:
    """A message from a mapping of its fields. Raises `EventUnreadable`, which names the field."""
    try:
        return msgspec.convert(fields, message_type)
    except msgspec.ValidationError as error:
        raise EventUnreadable(f"{message_type.__name__}: {error}") from error
