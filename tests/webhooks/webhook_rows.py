"""Events in `webhook_logs` that many tests start from, and a sender they came from."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letter_replay import discard
from couponflow.kernel.dead_letters import DeadLetter, LetterFilter, bury
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.outbox import publish
from couponflow.messages import EmailRequested, WebhookAccepted
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)

IDS = Uuid7Generator()
RECEIVED_AT = 1_789_999_000.123456
"""2026-09-21 13:16:40 UTC; each next event came a second later."""
INSERT = """
insert into webhook_logs (id, received_at, source, event_type, event_id, verdict, detail, method,
                          query, headers, body, body_bytes, body_sha256, address)
values (%(id)s, to_timestamp(%(received_at)s), %(source)s, %(event_type)s, %(event_id)s,
        %(verdict)s, %(detail)s, %(method)s, %(query)s, %(headers)s::json, %(body)s,
        octet_length(%(body)s), %(hash)s, '192.0.2.9')
"""


class LoggedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `webhook_logs`."""

    id: str
    received_at: float
    source: str = "mailer"
    event_type: str = "mail.wanted"
    event_id: str
    verdict: str = "verified"
    detail: str = ""
    method: str = "POST"
    query: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b'{"count":1}'

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.received_at, UTC)


def event(number: float = 1, **changes: str | float | bytes | dict[str, str]) -> LoggedRow:
    """A verified event; `number` says when it came."""
    received_at = RECEIVED_AT + number
    made = LoggedRow(id=IDS.make(received_at), received_at=received_at, event_id=f"evt_{number}")
    return msgspec.structs.replace(made, **changes)


async def log_events(database: Database, *events: LoggedRow) -> None:
    async with database.transaction() as connection, connection.cursor() as cursor:
        await cursor.executemany(
            INSERT,
            [
                {
                    **msgspec.structs.asdict(each),
                    "headers": msgspec.json.encode(each.headers).decode(),
                    "hash": hashlib.sha256(each.body).digest(),
                }
                for each in events
            ],
        )


async def make_waiting(database: Database, logged: LoggedRow) -> None:
    """Have the event's own message in the outbox."""
    message = WebhookAccepted(
        webhook_id=logged.id, source=logged.source, received_at=logged.received_at
    )
    async with database.transaction() as connection:
        await publish(connection, message, message_id=logged.id, correlation_id=logged.id)


def letter_of(logged: LoggedRow, reason: str = "no such order") -> DeadLetter:
    """The event's own message, dead."""
    message = WebhookAccepted(
        webhook_id=logged.id, source=logged.source, received_at=logged.received_at
    )
    return DeadLetter(
        id=IDS.make(logged.received_at),
        channel="webhooks",
        message_id=logged.id,
        message=msgspec.json.encode(message),
        reason=reason,
        attempts=3,
        correlation_id=logged.id,
    )


async def make_dead(database: Database, *letters: DeadLetter) -> None:
    async with database.transaction() as connection:
        await bury(connection, letters)


async def give_up(database: Database, *letters: DeadLetter) -> None:
    """Have an operator discard letters."""
    await discard(
        database,
        LetterFilter(ids=tuple(each.id for each in letters)),
        actor="cli:bob",
        clock=SystemClock(),
        ids=IDS,
    )


async def log_one_of_each(database: Database) -> dict[str, LoggedRow]:
    """An event of each status, by its status."""
    processed, waiting, dead = event(1), event(2), event(3)
    refused = event(4, verdict="bad-signature", detail="no signature matches", event_id="")
    await log_events(database, processed, waiting, dead, refused)
    await make_waiting(database, waiting)
    await make_dead(database, letter_of(dead))
    return {"processed": processed, "waiting": waiting, "dead": dead, "refused": refused}


class MailWanted(msgspec.Struct):
    """What the mailer sends."""

    count: int


class MailerSource:
    """A sender on whose word emails are sent: as many as `count` in the body says."""

    name = "mailer"
    methods = frozenset({"POST"})
    header_names: Sequence[str] = ("content-type",)
    secret_header_names: frozenset[str] = frozenset()

    def verify(self, delivery: Delivery) -> Refused | None:
        return None

    def identify(self, delivery: Delivery) -> Identity:
        return Identity()

    def public_query(self, delivery: Delivery) -> str:
        return delivery.query

    def translate(self, event: StoredEvent) -> list[Translated]:
        try:
            count = msgspec.json.decode(event.body, type=MailWanted).count
        except msgspec.DecodeError as error:
            raise EventUnreadable(f"ann@shop.example cannot be read: {error}") from error
        return [
            Translated(EmailRequested(to=f"s{number}@shop.example", subject="Hello", text="text"))
            for number in range(count)
        ]


SOURCES = {"mailer": MailerSource()}
