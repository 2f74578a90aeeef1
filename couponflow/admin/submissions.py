"""Messages that come from outside: what they must look like, and when two are the same.

A caller that got no answer sends again with the same `Idempotency-Key`. No table remembers keys:
the message's id is made from the caller, the channel and the key (its first 74 bits) and from what
is to be sent (its last 48), so wherever the message is by then (waiting, done or dead) its id
tells whether the key was used, and whether for the same thing. A key is known for as long as its
message: until `[outbox] done_days` after it was done.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import msgspec
from starlette.datastructures import QueryParams

from couponflow.kernel.api import ProblemError, decode_body, invalid_body, invalid_query
from couponflow.kernel.clock import END_OF_TIME
from couponflow.kernel.outbox import MESSAGE_BYTES_MAX
from couponflow.messages import Message, MessageTypes

KEY_MAX = 255
_NAME_SHOWN_MAX = 80
_SPACE_FOR_PLUS = re.compile(r" (?=\d\d:\d\d$)")
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class SubmissionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What may be said of a message beside itself."""

    available_at: float | None = None
    """Seconds since the epoch."""
    dedup_key: str | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be published, once for each `idempotency_key` of an actor."""

    message: Message
    options: SubmissionOptions
    actor: str
    correlation_id: str | None = None
    idempotency_key: str | None = None


class IdempotentId(msgspec.Struct, frozen=True):
    """The id that a message gets from an idempotency key."""

    message_id: str
    low: str
    """Whatever was sent with the key has an id from `low` to `high`."""
    high: str
    lock: int
    """The key as the number of a lock of PostgreSQL."""


def message_types_of(channel: str, channels: Mapping[str, MessageTypes]) -> MessageTypes:
    """The types a channel carries; raises `ProblemError` naming the channels there are."""
    try:
        return channels[channel]
    except KeyError:
        known = ", ".join(sorted(channels))
        raise ProblemError(
            404,
            "unknown-channel",
            "Unknown channel",
            f"there is no channel {_shown(channel)}; there are: {known}",
        ) from None


def decode_message(body: bytes, types: MessageTypes) -> Message:
    """The message in JSON; without a `type` it is the first of `types`. Raises `ProblemError`.

    A field that the message does not have is refused: it is a mistake, or meant for a version that
    does not run here.
    """
    given = decode_body(body, dict[str, msgspec.Raw])
    by_tag = {each.__struct_config__.tag: each for each in types}
    tag_field = types[0].__struct_config__.tag_field or "type"
    tag = types[0].__struct_config__.tag
    if tag_field in given:
        tag = decode_body(given[tag_field], str)
        if tag not in by_tag:
            known_tags = ", ".join(map(str, by_tag))
            raise invalid_body(f"Invalid value {_shown(tag)}: there are {known_tags}", "$.type")
    message_type = by_tag[tag]
    known = {field.encode_name for field in msgspec.structs.fields(message_type)} | {tag_field}
    for name in given:
        if name not in known:
            raise invalid_body(f"Object has no field {_shown(name)}", f"$.{name[:_NAME_SHOWN_MAX]}")
    encoded_tag = msgspec.Raw(msgspec.json.encode(tag))
    message = decode_body(msgspec.json.encode({**given, tag_field: encoded_tag}), message_type)
    if len(msgspec.json.encode(message)) > MESSAGE_BYTES_MAX:
        raise invalid_body(f"The message is larger than {MESSAGE_BYTES_MAX:,} bytes", "$")
    return message


def options_of(query: QueryParams) -> SubmissionOptions:
    """Read `available_at` and `dedup_key`; raises `ProblemError` for anything else."""
    for name in query:
        if name not in ("available_at", "dedup_key") or len(query.getlist(name)) > 1:
            raise invalid_query(
                f"{_shown(name)} is unknown or given twice; there are available_at and dedup_key"
            )
    available_at, dedup_key = query.get("available_at"), query.get("dedup_key")
    return SubmissionOptions(
        available_at=None if available_at is None else parse_moment(available_at),
        dedup_key=None if dedup_key is None else checked_key(dedup_key, "dedup_key"),
    )


def parse_moment(text: str) -> float:
    """Seconds since the epoch from RFC 3339; raises `ProblemError`.

    The plus sign of an offset may have become a space on its way through a query.
    """
    try:
        seconds = msgspec.convert(_SPACE_FOR_PLUS.sub("+", text), _Moment).timestamp()
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise _invalid_moment() from error
    if not 0 <= seconds < END_OF_TIME:
        raise _invalid_moment()
    return seconds


def checked_key(text: str, name: str) -> str:
    """A key that PostgreSQL and logs can hold; raises `ProblemError`."""
    if not text or len(text) > KEY_MAX or not text.isprintable():
        raise invalid_query(f"{name} must have 1 to {KEY_MAX} printable characters")
    return text


def idempotent_id(submission: Submission, key: str) -> IdempotentId:
    """The id of a message that was sent with a key."""
    scope = _digest(submission.actor, submission.message.channel, key)
    content = _digest(
        msgspec.json.encode(submission.message).decode(),
        repr(submission.options.available_at),
        repr(submission.options.dedup_key),
    )
    # Version 8 of RFC 9562: an id whose bits mean what its maker says.
    variant = "89ab"[int(scope[15], 16) & 3]
    prefix = f"{scope[:8]}-{scope[8:12]}-8{scope[12:15]}-{variant}{scope[16:19]}-"
    return IdempotentId(
        message_id=prefix + content[:12],
        low=prefix + "0" * 12,
        high=prefix + "f" * 12,
        lock=int.from_bytes(bytes.fromhex(scope[:16]), signed=True),
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _shown(name: str) -> str:
    return repr(name[:_NAME_SHOWN_MAX])


def _invalid_moment() -> ProblemError:
    return invalid_query(
        "the time must have an offset and lie between 1970 and 9999, as 2030-01-31T18:30:00Z"
    )
