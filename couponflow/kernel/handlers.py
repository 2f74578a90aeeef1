"""How to write a consumer: a function for one message type, its limits, and what it can say.

    async def send(message: EmailRequested, context: HandlerContext) -> Outcome:
        async with context.transaction() as connection:
            ...  # the effect, and the record that it happened, in one commit
        return DONE

    Handler("email", EmailRequested, send, HandlerPolicy(concurrency=20))

Where many messages wait, a transaction for each costs more than their effects; a handler may say
how to have several in one (`run_together`).

An exception is a failed attempt: it is recorded with its text and the message is tried again
later, at most `max_attempts` times in all; then it is a dead letter. A `DeliveryError` says whether
another attempt makes sense, and when.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

import msgspec

from couponflow.kernel.database_connection import IDLE_IN_TRANSACTION_SECONDS, Connection
from couponflow.messages import Message

T = TypeVar("T", bound=Message)


class Done(msgspec.Struct, frozen=True, tag=True):
    """The message has had its effect."""


class Retry(msgspec.Struct, frozen=True, tag=True):
    """This attempt failed; try again after so many seconds, or when the policy says (None)."""

    after_seconds: float | None = None
    reason: str = "the handler asked for another attempt"


class Discard(msgspec.Struct, frozen=True, tag=True):
    """The message needs no effect any more; it is forgotten, and the reason is logged."""

    reason: str


class Snooze(msgspec.Struct, frozen=True, tag=True):
    """It is too early; come back at `until` (seconds since the epoch). Not an attempt."""

    until: float


Outcome = Done | Retry | Discard | Snooze
DONE = Done()


class DeliveryError(Exception):
    """What a handler asked of somebody else was refused or failed.

    A permanent one makes the message a dead letter at once; any other is tried again, not before
    `retry_after_seconds` where the other side named a time.
    """

    def __init__(
        self, text: str, *, permanent: bool, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        self.permanent = permanent
        self.retry_after_seconds = retry_after_seconds


class MessageUnfit(DeliveryError):
    """What a message says cannot be acted upon: it is unreadable, or about what is not known here.

    That is this message's own fault, so however many die of it, the breaker lets the others of
    their channel go on: outsiders must not be able to stop it by what they tell us.
    """


class NotKnownHere(Exception):
    """This daemon does not know what the message is about; give it the settings of the others.

    It is put off, half a minute at a time and without counting an attempt, for a daemon of
    a newer version or with other settings; after most of an hour it is a dead letter.
    """


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how soon a failed message is tried again."""

    max_attempts: int = 3
    first_seconds: float = 1.0
    max_seconds: float = 300.0


class HandlerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a handler in one daemon."""

    concurrency: int = 100
    """Attempts at this type at once, one at several messages being one."""
    timeout_seconds: float = 30.0
    """A longer attempt is cancelled and counts as failed."""
    retry: RetryPolicy = RetryPolicy()

    def __post_init__(self) -> None:
        if not 0 < self.timeout_seconds < IDLE_IN_TRANSACTION_SECONDS:
            raise ValueError(
                f"timeout_seconds is {self.timeout_seconds:g}: a handler has less than"
                f" {IDLE_IN_TRANSACTION_SECONDS}, after which PostgreSQL ends its transaction"
            )


class HandlerContext(Protocol):
    """What a handler may know of the attempt it makes, and how it makes its effect happen once."""

    @property
    def message_id(self) -> str: ...

    @property
    def correlation_id(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    @property
    def published_at(self) -> float:
        """Seconds since the epoch."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """One transaction that makes the effect and the record that it happened, or neither.

        For at most one use an attempt. When the block ends without an error the message is done,
        whatever the handler does after it. It never returns to the handler if the message was done
        before or belongs to another worker by now: the attempt then ends quietly, without effect.
        """
        ...


class Told(msgspec.Struct, Generic[T], frozen=True, kw_only=True, gc=False):
    """One of several messages that a handler is given at once."""

    message: T
    message_id: str
    correlation_id: str
    published_at: float
    """Seconds since the epoch."""


def as_told(message: T, context: HandlerContext) -> Told[T]:
    """One message as `run_together` would be given it."""
    return Told(
        message=message,
        message_id=context.message_id,
        correlation_id=context.correlation_id,
        published_at=context.published_at,
    )


class Handler(msgspec.Struct, Generic[T], frozen=True):
    """A consumer of one message type; one for each type of a channel."""

    name: str
    message_type: type[T]
    run: Callable[[T, HandlerContext], Awaitable[Outcome]]
    policy: HandlerPolicy = HandlerPolicy()
    run_together: Callable[[Sequence[Told[T]], Connection], Awaitable[Sequence[str]]] | None = None
    """Has the effects of several messages in the given transaction, and says the ids of those that
    had theirs; what it leaves out, or all if it raises, is given to `run`. It writes nothing for
    what it leaves out, names the `correlation_id` of what it publishes, and is for a `run` that has
    all of its effects in `context.transaction()`."""
