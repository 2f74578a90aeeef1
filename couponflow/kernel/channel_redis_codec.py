"""What a stream's entries look like, so that `redis-cli` can read them and others can write them.

An entry is a flat list of fields. `message` is the message as JSON; the others are what couponflow
adds to it. Another program needs no more than
`XADD queue:emails * message '{"type":"email.v1",...}'`.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Generic, Protocol, TypeVar

import msgspec

from couponflow.kernel.channel import M
from couponflow.kernel.clock import END_OF_TIME
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.identifiers import is_canonical_uuid
from couponflow.messages import Message

T = TypeVar("T", bound=Message)

MAX_ENTRY_BYTES = 1024 * 1024
CORRELATION_CHARACTERS_MAX = 500
ATTEMPT_MAX = 1_000_000
HANDOVER_MAX = 2_000_000_000
"""What a database column holds: an entry of another program may say anything."""

# Any fixed value does: it keeps the ids made here apart from all others.
_NAMESPACE = uuid.UUID("5e1b8a52-3f0c-5d1e-9f54-0d5a3a6c7b21")


class EntryMalformed(Exception):
    """An entry of a stream is not a message of its channel; the text says why.

    Whoever wrote it must mend its program; the entry becomes a dead letter.
    """


class Malformed(msgspec.Struct, frozen=True):
    """An entry that cannot be a message, as it was found."""

    channel: str
    entry_id: str
    fields: Mapping[bytes, bytes]
    reason: str


def token_in(fields: Mapping[bytes, bytes]) -> tuple[str, int] | None:
    """The outbox row that an entry says it carries, and the hand-over; None where it says none.

    Also of an entry that is malformed otherwise: its message may be of a newer version.
    """
    try:
        message_id = _uuid(fields, b"id")
        handover = _count(fields, b"handover", least=0, most=HANDOVER_MAX, otherwise=0)
    except EntryMalformed:
        return None
    return (message_id, handover) if message_id and handover else None


class Codec(Protocol[M]):
    """Turns what a channel carries into the fields of an entry, and back."""

    def encode(self, message: M) -> Sequence[bytes]:
        """The fields and their values, in turn."""
        ...

    def decode(self, entry_id: str, fields: Mapping[bytes, bytes]) -> M:
        """Raises `EntryMalformed`; fields it does not know are nobody's concern."""
        ...


class MessageCodec(Generic[T]):
    """For a channel that carries bare messages of one type."""

    def __init__(self, message_type: type[T]) -> None:
        self._encoder = msgspec.json.Encoder()
        self._reader = _MessageReader(message_type)

    def encode(self, message: T) -> Sequence[bytes]:
        return b"message", self._encoder.encode(message)

    def decode(self, entry_id: str, fields: Mapping[bytes, bytes]) -> T:
        return self._reader.read(fields)


class EnvelopeCodec:
    """For a channel that carries messages in envelopes; `types` are all it may carry.

    An entry of another program has a `message` only. It then gets an id made from the stream and
    the entry's own id, so that the same entry is the same message however often it is handed out.
    """

    def __init__(self, types: Sequence[type[Message]]) -> None:
        if len({each.channel for each in types}) != 1:
            raise ValueError(f"{[each.__name__ for each in types]} are not of one channel")
        self._channel = types[0].channel
        self._encoder = msgspec.json.Encoder()
        self._reader: _MessageReader[Message] = _MessageReader(*types)

    def encode(self, message: Envelope) -> Sequence[bytes]:
        fields = [
            b"message",
            self._encoder.encode(message.message),
            b"id",
            message.message_id.encode(),
            b"published_at",
            repr(message.published_at).encode(),
        ]
        # What goes without saying is left out: every field costs on the way there and back.
        if message.correlation_id != message.message_id:
            fields += (b"correlation_id", message.correlation_id.encode())
        if message.handover:
            fields += (b"handover", b"%d" % message.handover)
        if message.attempt != 1:
            fields += (b"attempt", b"%d" % message.attempt)
        if message.lapsed:
            fields += (b"lapsed", b"1")
        return fields

    def decode(self, entry_id: str, fields: Mapping[bytes, bytes]) -> Envelope:
        message = self._reader.read(fields)
        message_id = _uuid(fields, b"id") or self._id_of(entry_id)
        return Envelope(
            message_id=message_id,
            message=message,
            correlation_id=_story(fields) or message_id,
            published_at=_seconds(fields, entry_id),
            attempt=_count(fields, b"attempt", least=1, most=ATTEMPT_MAX, otherwise=1),
            handover=_count(fields, b"handover", least=0, most=HANDOVER_MAX, otherwise=0),
            lapsed=fields.get(b"lapsed", b"") == b"1",
        )

    def _id_of(self, entry_id: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, f"queue:{self._channel} {entry_id}"))


class _Tagged(msgspec.Struct):
    type: str


class _MessageReader(Generic[T]):
    """Reads the field `message`, which must be one of the types and say which."""

    def __init__(self, *types: type[T]) -> None:
        self._names = ", ".join(str(each.__struct_config__.tag) for each in types)
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(reduce(or_, types))
        self._tag_decoder = msgspec.json.Decoder(_Tagged)

    def read(self, fields: Mapping[bytes, bytes]) -> T:
        if sum(map(len, fields.values())) > MAX_ENTRY_BYTES:
            raise EntryMalformed(f"it is larger than {MAX_ENTRY_BYTES} bytes")
        text = fields.get(b"message")
        if text is None:
            raise EntryMalformed("it has no field `message`")
        try:
            message = self._decoder.decode(text)
            # Where only one type is possible, msgspec does not ask for its name.
            self._tag_decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EntryMalformed(
                f"`message` is not the JSON of a message of this channel ({self._names}): {error}"
            ) from error
        return message


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise EntryMalformed(f"`{name.decode()}` is not plain text") from None


def _uuid(fields: Mapping[bytes, bytes], name: bytes) -> str | None:
    text = _text(fields, name)
    if text is not None and not is_canonical_uuid(text):
        raise EntryMalformed(f"`{name.decode()}` is not a UUID in canonical lower-case text")
    return text


def _story(fields: Mapping[bytes, bytes]) -> str:
    """The correlation id: any text, such as the request id of whoever asked."""
    text = fields.get(b"correlation_id", b"").decode(errors="replace")
    return text.replace("\0", "\ufffd")[:CORRELATION_CHARACTERS_MAX]


def _count(
    fields: Mapping[bytes, bytes], name: bytes, *, least: int, most: int, otherwise: int
) -> int:
    text = _text(fields, name)
    if text is None:
        return otherwise
    if not text.isdigit() or len(text) > 18 or not least <= int(text) <= most:
        raise EntryMalformed(f"`{name.decode()}` is not a whole number from {least} to {most}")
    return int(text)


def _seconds(fields: Mapping[bytes, bytes], entry_id: str) -> float:
    text = _text(fields, b"published_at")
    if text is None:
        return int(entry_id.partition("-")[0]) / 1000
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    # Not only negative: neither is NaN within.
    if not 0.0 <= seconds < END_OF_TIME:
        raise EntryMalformed("`published_at` is not in seconds since the epoch")
    return seconds
