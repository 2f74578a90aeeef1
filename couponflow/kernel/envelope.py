"""A message with what its way through the channels needs to know of it."""

import msgspec

from couponflow.messages import Message


class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message on its way to a handler."""

    message_id: str
    """A UUID in canonical text: what makes an effect happen once."""
    message: Message
    correlation_id: str
    """Which story this belongs to; on every log line about it."""
    published_at: float
    """Seconds since the epoch."""
    attempt: int = 1
    """The number of the attempt that this hand-over is for, counting those before it."""
    handover: int = 0
    """The outbox's fencing token; 0 for a message that has no row there."""
    begun: bool = False
    """The outbox already counts this attempt, and its row is owned by this worker."""
    lapsed: bool = False
    """An earlier attempt ended with its worker: to be run alone."""
