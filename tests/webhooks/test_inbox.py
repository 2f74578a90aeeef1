from collections.abc import Awaitable, Callable

import anyio
import msgspec
import psycopg
import pytest

from couponflow.kernel.attempt import Attempt
from couponflow.kernel.database import Database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handlers import DONE, HandlerContext, MessageUnfit, NotKnownHere, Outcome
from couponflow.kernel.outbox import publish
from couponflow.kernel.outbox_rows import OutboxRow, Token
from couponflow.messages import (
    CHANNELS,
    AuditReported,
    FailureReported,
    Message,
    MetricReported,
    WebhookAccepted,
    message_decoder,
)
from couponflow.webhooks.contract import Refused
from couponflow.webhooks.following import following
from couponflow.webhooks.inbox import Inbox
from couponflow.webhooks.store import EventRow, read_events, store_events
from tests.kernel.letters import bury_all, letter
from tests.kernel.outboxes import WORKER, claim, finish, register, select
from tests.samples import CLICKED_AT
from tests.webhooks.deliveries import Shop, delivery, event_row, intake_parts

pytestmark = pytest.mark.once

EMAILS = (
    "select id::text, message ->> 'to', correlation_id from outbox where channel = 'emails'"
    " order by 2"
)
DONE_MESSAGES = "select message_id::text from processed_messages where channel = 'webhooks'"


class Desk:
    """The inbox without its channel; `work` has it take all that waits there."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.shop = Shop()
        self._runs: dict[type[Message], Callable[[Message, HandlerContext], Awaitable[Outcome]]] = {
            handler.message_type: handler.run for handler in Inbox({"shop": self.shop}).handlers()
        }

    async def receive(self, body: bytes, event_id: str = "", **changes: str | float) -> EventRow:
        """Have intake write an event down."""
        row = event_row(event_id, body, **changes)
        async with self.database.transaction() as connection:
            assert await store_events(connection, [row]) == {row.webhook_id}
        return row

    async def tell(self, message: Message, correlation_id: str = "story") -> str:
        """Publish on the channel, under an id of its own, as a replay does."""
        async with self.database.transaction() as connection:
            message_id = await publish(connection, message, correlation_id=correlation_id)
        assert message_id is not None
        return message_id

    async def claim(self) -> list[OutboxRow]:
        return await claim(self.database, channel="webhooks")

    async def attempt(self, row: OutboxRow) -> Outcome:
        decoded = message_decoder(CHANNELS["webhooks"]).decode(row.message)
        envelope = Envelope(
            message_id=row.message_id,
            message=decoded,
            correlation_id=row.correlation_id,
            published_at=row.published_at,
            attempt=row.attempt,
            handover=row.handover,
        )
        return await self._runs[type(decoded)](decoded, Attempt(envelope, self.database))

    async def work(self) -> list[Outcome]:
        return [await self.attempt(row) for row in await self.claim()]

    async def emails(self) -> list[tuple[object, ...]]:
        return await select(self.database, EMAILS)


@pytest.fixture
async def desk(database: Database) -> Desk:
    await register(database, WORKER)
    return Desk(database)


def accepted(row: EventRow, **changes: str | float) -> WebhookAccepted:
    message = WebhookAccepted(
        webhook_id=row.webhook_id, source=row.source, received_at=row.received_at
    )
    return msgspec.structs.replace(message, **changes)


async def test_what_follows_is_published_with_the_record_that_it_was(desk: Desk) -> None:
    row = await desk.receive(b"ann ben:part-2")
    assert await desk.work() == [DONE]
    async with desk.database.connection() as connection:
        (event,) = (await read_events(connection, [accepted(row)])).values()
    ann, ben = (each.message_id for each in following(desk.shop, event))
    assert await desk.emails() == [
        (ann, "ann@shop.example", row.webhook_id),
        (ben, "ben@shop.example", row.webhook_id),
    ]
    assert await select(desk.database, DONE_MESSAGES) == [(row.webhook_id,)]


async def let_wait(desk: Desk) -> None:
    """Nothing has happened to what follows."""


async def let_be_done(desk: Desk) -> None:
    rows = await claim(desk.database, channel="emails")
    await finish(desk.database, *(Token(row.message_id, row.handover) for row in rows))


async def let_die(desk: Desk) -> None:
    rows = await claim(desk.database, channel="emails")
    letters = [letter(row.message_id, "emails", message=row.message.encode()) for row in rows]
    await bury_all(desk.database, *letters)
    async with desk.database.connection() as connection:
        await connection.execute("delete from outbox where channel = 'emails'")


@pytest.mark.parametrize("meanwhile", [let_wait, let_be_done, let_die])
async def test_told_again_an_event_is_followed_by_nothing_more(
    desk: Desk, meanwhile: Callable[[Desk], Awaitable[None]]
) -> None:
    row = await desk.receive(b"ann ben:part-2")
    await desk.work()
    await meanwhile(desk)
    before = await desk.emails()
    replay = await desk.tell(accepted(row), row.webhook_id)
    assert await desk.work() == [DONE]
    assert await desk.emails() == before
    assert (replay,) in await select(desk.database, DONE_MESSAGES)


async def test_told_again_only_what_was_lost_follows(desk: Desk) -> None:
    row = await desk.receive(b"ann ben")
    await desk.work()
    before = await desk.emails()
    async with desk.database.connection() as connection:
        await connection.execute("delete from outbox where message ->> 'to' like 'ben@%%'")
    await desk.tell(accepted(row), row.webhook_id)
    await desk.work()
    assert await desk.emails() == before


async def test_a_part_of_two_events_has_its_effect_once(desk: Desk) -> None:
    await desk.receive(b"ann:part-1 ben:part-2", "e1")
    await desk.receive(b"ben:part-2 cid:part-3 ben:part-2", "e2")
    assert await desk.work() == [DONE, DONE]
    assert [to for _, to, _ in await desk.emails()] == [
        f"{name}@shop.example" for name in ("ann", "ben", "cid")
    ]


async def test_an_event_and_its_replay_at_once_are_followed_once(desk: Desk) -> None:
    row = await desk.receive(b"ann ben")
    await desk.tell(accepted(row), row.webhook_id)
    rows = await desk.claim()
    again: list[OutboxRow] = []

    async def attempt(claimed: OutboxRow) -> None:
        try:
            await desk.attempt(claimed)
        except psycopg.errors.UniqueViolation:
            again.append(claimed)

    async with anyio.create_task_group() as tasks:
        for claimed in rows:
            tasks.start_soon(attempt, claimed)
    assert len(again) < len(rows) == 2
    assert [await desk.attempt(claimed) for claimed in again] == [DONE] * len(again)
    assert len(await desk.emails()) == 2
    assert len(await select(desk.database, DONE_MESSAGES)) == 2


async def test_a_moment_of_any_digits_finds_its_row(desk: Desk) -> None:
    for number in range(20):
        await desk.receive(b"", received_at=CLICKED_AT + number / 7 + 1e-7)
    assert await desk.work() == [DONE] * 20
    # Nothing follows from an event that names nobody.
    assert await desk.emails() == []


async def refusal(desk: Desk, text: str) -> None:
    """The only message is refused for good, and nothing comes of it."""
    (row,) = await desk.claim()
    with pytest.raises(MessageUnfit, match=text) as raised:
        await desk.attempt(row)
    assert raised.value.permanent
    assert await desk.emails() == []
    assert await select(desk.database, "select from processed_messages") == []
    left = await select(desk.database, "select id::text from outbox")
    assert left == [(row.message_id,)]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"unreadable", "shop mail: It names nobody"),
        # Its first message could be published; none is without the other.
        (b"ann b\x01n", "shop mail: this EmailRequested does not fit its type"),
    ],
)
async def test_what_cannot_be_read_or_told_is_dead_at_once(
    desk: Desk, body: bytes, text: str
) -> None:
    await desk.receive(body)
    await refusal(desk, text)


async def test_an_event_of_a_source_that_only_others_know_is_left_to_them(desk: Desk) -> None:
    await desk.receive(b"ann", source="mall")
    (row,) = await desk.claim()
    with pytest.raises(NotKnownHere, match="there is no source mall here"):
        await desk.attempt(row)
    assert await desk.emails() == []
    assert await select(desk.database, "select id::text from outbox") == [(row.message_id,)]


async def test_an_event_of_another_time_is_another_event(desk: Desk) -> None:
    row = await desk.receive(b"")
    await desk.work()
    async with desk.database.connection() as connection:
        await connection.execute("delete from processed_messages")
    await desk.tell(accepted(row, received_at=row.received_at + 2))
    await refusal(desk, f"no verified event {row.webhook_id} of that time")


async def test_what_was_refused_is_no_event(desk: Desk) -> None:
    parts = intake_parts(desk.database)
    parts.refusals.note("shop", delivery(), Refused("bad-signature", ""))
    await parts.refusals.flush()
    ((webhook_id,),) = await select(desk.database, "select id::text from webhook_logs")
    await desk.tell(accepted(event_row(), webhook_id=str(webhook_id)))
    await refusal(desk, "webhook_logs has no verified event")


# What other services tell


def test_every_message_of_the_channel_has_a_handler() -> None:
    handlers = Inbox({}).handlers()
    assert {handler.message_type for handler in handlers} == set(CHANNELS["webhooks"])
    assert len({handler.name for handler in handlers}) == len(handlers)


async def test_what_another_service_did_is_in_the_audit_log(desk: Desk) -> None:
    message_id = await desk.tell(
        AuditReported(actor="shop", action="price.set", subject="sku 1", details={"to": "5"})
    )
    assert await desk.work() == [DONE]
    rows = await select(desk.database, "select actor, action, subject, details from audit_logs")
    details = {"message_id": message_id, "to": "5"}
    assert rows == [("service:shop", "price.set", "sku 1", details)]


async def test_what_another_service_measured_is_kept(desk: Desk) -> None:
    message_id = await desk.tell(
        MetricReported(name="carts", value=2.5, labels={"shop": "a"}, measured_at=CLICKED_AT)
    )
    assert await desk.work() == [DONE]
    rows = await select(
        desk.database,
        "select id::text, name, value, labels, extract(epoch from measured_at)::float8"
        " from reported_metrics",
    )
    assert rows == [(message_id, "carts", 2.5, {"shop": "a"}, CLICKED_AT)]


async def test_what_another_service_gave_up_is_a_dead_letter(desk: Desk) -> None:
    full = FailureReported(origin="carts", message_json='{"a":1}', reason="it was full")
    odd = FailureReported(origin="tills", message_json="no json", reason="")
    first, second = await desk.tell(full, "its story"), await desk.tell(odd, "its story")
    assert await desk.work() == [DONE, DONE]
    rows = await select(
        desk.database,
        "select id::text, channel, message, reason, attempts, correlation_id from dead_letters"
        " order by channel",
    )
    # They have stories of their own: the event that told of them did not fail, and is done.
    assert rows == [
        (first, "carts", {"a": 1}, "it was full", 1, first),
        (second, "tills", "no json", "another service gave it up", 1, second),
    ]
    named = await select(desk.database, "select message_id from dead_letters")
    assert not {(first,), (second,)} & set(named)
