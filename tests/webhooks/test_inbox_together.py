"""Several events passed on in one transaction."""

from collections.abc import Awaitable, Callable

import pytest
import structlog

from couponflow.kernel.handlers import DONE, DeliveryError, NotKnownHere, Told
from couponflow.kernel.outbox_rows import OutboxRow
from couponflow.messages import CHANNELS, WebhookAccepted, message_decoder
from couponflow.webhooks.inbox import Inbox
from tests.kernel.outboxes import select
from tests.webhooks.deliveries import event_row
from tests.webhooks.test_inbox import (
    Desk,
    accepted,
    desk,
    let_be_done,
    let_die,
    let_wait,
)

__all__ = ["desk"]

pytestmark = pytest.mark.once

WRITTEN = (
    "select 'outbox', id::text, channel from outbox"
    " union all select 'done', message_id::text, channel from processed_messages"
    " union all select 'dead', message_id, channel from dead_letters order by 1, 2"
)


async def pass_on(desk: Desk, *rows: OutboxRow) -> list[str]:
    """Pass on the events that these tell of, all at once; the ids of those that are done."""
    decoder = message_decoder(CHANNELS["webhooks"])
    told: list[Told[WebhookAccepted]] = []
    for row in rows:
        message = decoder.decode(row.message)
        assert isinstance(message, WebhookAccepted)
        told.append(
            Told(
                message=message,
                message_id=row.message_id,
                correlation_id=row.correlation_id,
                published_at=row.published_at,
            )
        )
    async with desk.database.transaction() as connection:
        return list(await Inbox({"shop": desk.shop}).pass_on_together(told, connection))


async def addressees(desk: Desk) -> list[object]:
    return [to for _, to, _ in await desk.emails()]


async def test_of_several_events_those_that_can_be_are_passed_on(desk: Desk) -> None:
    await desk.receive(b"unreadable")
    await desk.receive(b"mia", source="mall")
    await desk.tell(accepted(event_row()))
    good = await desk.receive(b"ann ben")
    rows = await desk.claim()
    assert len(rows) == 4
    before = await select(desk.database, WRITTEN)
    assert await pass_on(desk, *rows) == [good.webhook_id]
    assert await addressees(desk) == ["ann@shop.example", "ben@shop.example"]
    added = set(await select(desk.database, WRITTEN)) - set(before)
    assert {(table, channel) for table, _, channel in added} == {("outbox", "emails")}
    assert len(added) == 2
    for row in rows:
        if row.message_id != good.webhook_id:
            with pytest.raises((DeliveryError, NotKnownHere)):
                await desk.attempt(row)


async def test_nothing_is_passed_on_with_what_cannot_be_told(desk: Desk) -> None:
    await desk.receive(b"ann")
    await desk.receive(b"b\x01n")
    before = await select(desk.database, WRITTEN)
    rows = await desk.claim()
    with pytest.raises(ValueError, match="this EmailRequested does not fit its type"):
        await pass_on(desk, *rows)
    assert await select(desk.database, WRITTEN) == before


async def test_a_part_of_several_events_is_published_once(desk: Desk) -> None:
    one = await desk.receive(b"ann:part-1 ben:part-2", "e1")
    other = await desk.receive(b"ben:part-2 cid:part-3", "e2")
    done = await pass_on(desk, *await desk.claim())
    assert sorted(done) == [one.webhook_id, other.webhook_id]
    assert await addressees(desk) == [f"{name}@shop.example" for name in ("ann", "ben", "cid")]


async def test_an_event_and_its_replay_are_followed_once(desk: Desk) -> None:
    row = await desk.receive(b"ann ben")
    replay = await desk.tell(accepted(row), row.webhook_id)
    assert set(await pass_on(desk, *await desk.claim())) == {row.webhook_id, replay}
    assert len(await desk.emails()) == 2


async def test_what_follows_belongs_to_the_story_of_its_event(desk: Desk) -> None:
    events = {name: await desk.receive(name.encode()) for name in ("ann", "ben", "cid")}
    with structlog.contextvars.bound_contextvars(correlation_id="of the log lines"):
        await pass_on(desk, *await desk.claim())
    assert [(to, story) for _, to, story in await desk.emails()] == [
        (f"{name}@shop.example", event.webhook_id) for name, event in events.items()
    ]


@pytest.mark.parametrize("meanwhile", [let_wait, let_be_done, let_die])
async def test_only_what_is_unknown_is_published(
    desk: Desk, meanwhile: Callable[[Desk], Awaitable[None]]
) -> None:
    known = await desk.receive(b"ann ben")
    assert await desk.work() == [DONE]
    await meanwhile(desk)
    before = await desk.emails()
    replay = await desk.tell(accepted(known), known.webhook_id)
    new = await desk.receive(b"cid")
    assert set(await pass_on(desk, *await desk.claim())) == {replay, new.webhook_id}
    left = await desk.emails()
    assert [each for each in left if each in before] == before
    assert [(to, story) for _, to, story in left if to not in {row[1] for row in before}] == [
        ("cid@shop.example", new.webhook_id)
    ]


async def test_events_that_come_again_at_once_change_nothing(desk: Desk) -> None:
    events = [await desk.receive(b"ann ben:part-1"), await desk.receive(b"ben:part-1 cid")]
    rows = await desk.claim()
    assert set(await pass_on(desk, *rows)) == {each.webhook_id for each in events}
    before = await desk.emails(), await select(desk.database, WRITTEN)
    assert set(await pass_on(desk, *reversed(rows))) == {each.webhook_id for each in events}
    assert (await desk.emails(), await select(desk.database, WRITTEN)) == before
    assert len(before[0]) == 3
