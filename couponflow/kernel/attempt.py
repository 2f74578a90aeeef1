"""One attempt of a handler: what it knows, and the transaction that makes its effect once."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from couponflow.kernel import outbox_rows
from couponflow.kernel.commit_outcome import certain_transaction
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Database
from couponflow.kernel.database_connection import Connection
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.outbox_rows import Token

COMMIT_DEADLINE_SECONDS = 20.0
"""How long to ask what became of a COMMIT whose answer was lost."""


class AttemptOver(Exception):
    """The message was done before, or is another worker's by now: this attempt has no effect.

    Raised where a handler asks for its transaction; it is not a failure, and not for the handler.
    """


class TransactionUsedUp(Exception):
    """A handler asked for a second transaction in one attempt, after which nothing is certain.

    This is a fault in the handler: all of an attempt's effects belong into one transaction.
    """


class Attempt:
    """The `HandlerContext` of one attempt."""

    __slots__ = ("_asked", "_database", "_envelope", "committed", "over")

    def __init__(self, envelope: Envelope, database: Database) -> None:
        self._envelope = envelope
        self._database = database
        self._asked = False
        self.committed = False
        """The effect and its record are in PostgreSQL for good."""
        self.over = False
        """The message is no longer this attempt's to decide."""

    @property
    def message_id(self) -> str:
        return self._envelope.message_id

    @property
    def correlation_id(self) -> str:
        return self._envelope.correlation_id

    @property
    def attempt(self) -> int:
        return self._envelope.attempt

    @property
    def published_at(self) -> float:
        return self._envelope.published_at

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection, None]:
        if self._asked:
            raise TransactionUsedUp("an attempt has one transaction; put all effects into it")
        self._asked = True
        async with certain_transaction(
            self._database, deadline_seconds=COMMIT_DEADLINE_SECONDS
        ) as connection:
            await self._record(connection)
            yield connection
            crash_point("handler.effect")
        self.committed = True
        crash_point("handler.committed")

    async def _record(self, connection: Connection) -> None:
        """Write that the message is done, before the effect, so that a rival waits right here."""
        envelope = self._envelope
        if envelope.handover:
            token = Token(envelope.message_id, envelope.handover)
            recorded = bool(await outbox_rows.finish(connection, [token], "done"))
        else:
            channel = envelope.message.channel
            recorded = await outbox_rows.process(connection, envelope.message_id, channel)
        if not recorded:
            self.over = True
            raise AttemptOver(envelope.message_id)
