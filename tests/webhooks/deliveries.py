"""A small sender of the tests' own, and the intake over it."""

import hashlib
import hmac
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.messages import EmailRequested, WebhookAccepted
from couponflow.webhooks.address_list import AddressList
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.intake import Gate, Intake, Verdict
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.refusals import RefusalLog
from couponflow.webhooks.store import EventRow
from couponflow.webhooks.writer import EventWriter, Stored
from tests.kernel.outboxes import select
from tests.samples import CLICKED_AT, until

SECRET = b"the shop's secret"
SIGNATURE, EVENT_ID, EVENT_TYPE, KEY = "x-signature", "x-event-id", "x-event-type", "x-key"
NOWHERE = "postgresql://someone@/shop?host=/nowhere.invalid"
COUNTS = (
    "select (select count(*) from webhook_events),"
    " (select count(*) from webhook_logs where verdict = 'verified'),"
    " (select count(*) from outbox)"
)
REFUSALS = (
    "select source, verdict, detail, method, query, headers, body, body_bytes, body_sha256,"
    " address from webhook_logs where verdict <> 'verified' order by detail, address"
)
_numbers = itertools.count(1)


def signature(body: bytes) -> str:
    return hmac.new(SECRET, body, hashlib.sha256).hexdigest()


class Shop:
    """A source whose deliveries name addresses to write to, each perhaps with an event of its own:
    `ann ben:event-7`. It keeps what it was asked to verify."""

    header_names = (SIGNATURE, EVENT_ID, EVENT_TYPE, KEY)
    secret_header_names = frozenset({SIGNATURE, KEY})

    def __init__(self, name: str = "shop", methods: Sequence[str] = ("POST",)) -> None:
        self.name = name
        self.methods = frozenset(methods)
        self.seen: list[Delivery] = []
        self.identity: Identity | None = None
        """What every delivery is called, whatever its headers say."""

    def verify(self, delivery: Delivery) -> Refused | None:
        self.seen.append(delivery)
        given = delivery.headers.get(SIGNATURE, "")
        if given == "old":
            return Refused("stale", "signed long ago")
        if not hmac.compare_digest(given.encode(), signature(delivery.body).encode()):
            return Refused("bad-signature", f"{SIGNATURE} is of something else\0")
        return None

    def identify(self, delivery: Delivery) -> Identity:
        headers = delivery.headers
        return self.identity or Identity(headers.get(EVENT_TYPE, ""), headers.get(EVENT_ID, ""))

    def public_query(self, delivery: Delivery) -> str:
        return "&".join(each for each in delivery.query.split("&") if "secret=" not in each)

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        if event.body.startswith(b"unreadable"):
            raise EventUnreadable("It names nobody")
        found = [word.partition(":") for word in event.body.decode().split()]
        return [
            Translated(EmailRequested(to=f"{name}@shop.example", subject="s", text="t"), part)
            for name, _, part in found
        ]


def delivery(
    body: bytes = b"ann",
    *,
    event_id: str = "",
    event_type: str = "mail",
    signed: str | None = None,
    method: str = "POST",
    query: str = "",
    address: str = "192.0.2.7",
    received_at: float = CLICKED_AT,
) -> Delivery:
    """One that the shop signed; `signed` stands in place of the right signature."""
    headers = {
        SIGNATURE: signature(body) if signed is None else signed,
        EVENT_ID: event_id,
        EVENT_TYPE: event_type,
        KEY: "hunter2",
    }
    return Delivery(
        method=method,
        token="t%30ken",
        query=query,
        headers={name: value for name, value in headers.items() if value},
        body=body,
        address=address,
        received_at=received_at,
    )


def event_row(event_id: str = "", body: bytes = b"ann", **changes: Any) -> EventRow:
    """A row that can be stored, each time with another webhook id; without an id, a new event."""
    number = next(_numbers)
    webhook_id = f"01920000-0000-7000-c000-{number:012x}"
    source, received_at = changes.get("source", "shop"), changes.get("received_at", CLICKED_AT)
    message = WebhookAccepted(webhook_id=webhook_id, source=source, received_at=received_at)
    row = EventRow(
        webhook_id=webhook_id,
        received_at=received_at,
        source=source,
        event_type="mail",
        event_id=event_id or f"event-{number}",
        method="POST",
        query="",
        headers="{}",
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        address="192.0.2.7",
        message=msgspec.json.encode(message).decode(),
    )
    return msgspec.structs.replace(row, **changes)


class Submissions:
    """Rows given to a writer, and all that was answered of each."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self.answers: list[list[Stored]] = []

    def add(self, *rows: EventRow) -> None:
        for row in rows:
            answers: list[Stored] = []
            self.answers.append(answers)
            self._writer.submit(row, answers.append)

    async def told(self) -> list[Stored]:
        """What was answered, in the order of the rows, once each has its answer; just one."""
        await until(lambda: all(self.answers))
        assert {len(each) for each in self.answers} <= {1}
        return [each[0] for each in self.answers]

    async def ask(self, *rows: EventRow) -> list[Stored]:
        """Submit, wait, and return what was answered of these."""
        self.add(*rows)
        return (await self.told())[-len(rows) :]


async def counts(database: Database) -> tuple[object, ...]:
    """How many rows there are: known event ids, events, messages."""
    (row,) = await select(database, COUNTS)
    return row


@dataclass(frozen=True, slots=True)
class IntakeParts:
    """The intake and what it was built from."""

    database: Database
    source: Shop
    gate: Gate
    writer: EventWriter
    refusals: RefusalLog
    intake: Intake
    metrics: WebhookMetrics
    clock: ManualClock

    async def take(self, delivery: Delivery) -> tuple[Verdict, str]:
        """The verdict on one delivery, and the id it is given."""
        told: list[tuple[Verdict, str]] = []
        self.intake.take(
            self.gate, delivery, lambda verdict, webhook_id: told.append((verdict, webhook_id))
        )
        await until(lambda: bool(told))
        (judged,) = told
        return judged


def intake_parts(
    database: Database | None = None,
    *,
    source: Shop | None = None,
    writer: EventWriter | None = None,
    allowed: Sequence[str] = (),
    rate_per_second: float = 0,
    per_minute: int = 30,
    store_seconds: float = 5.0,
) -> IntakeParts:
    """Without a database nothing can be written down."""
    database = database or Database(NOWHERE, DatabaseSettings())
    clock, ids, metrics = ManualClock(), Uuid7Generator(), WebhookMetrics()
    source = source or Shop()
    writer = writer or event_writer(database, store_seconds=store_seconds, metrics=metrics)
    refusals = RefusalLog(database, clock, ids, metrics, per_minute)
    gate = Gate(source, AddressList(allowed), rate_per_second, clock, 64)
    intake = Intake(writer, refusals, ids)
    return IntakeParts(database, source, gate, writer, refusals, intake, metrics, clock)


@asynccontextmanager
async def writing(writer: EventWriter, writers: int = 2) -> AsyncIterator[None]:
    """Events are written during the block."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run, writers)
        yield
        tasks.cancel_scope.cancel()


def event_writer(
    database: Database, *, store_seconds: float = 5.0, metrics: WebhookMetrics | None = None
) -> EventWriter:
    """Its sweeps are timed by the event loop, and so is its clock."""
    return EventWriter(database, SystemClock(), metrics or WebhookMetrics(), store_seconds)
