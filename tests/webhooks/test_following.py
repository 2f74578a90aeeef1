import pytest

from couponflow.messages import EmailRequested
from couponflow.webhooks.contract import EventUnreadable, StoredEvent
from couponflow.webhooks.following import following
from tests.samples import CLICKED_AT
from tests.webhooks.deliveries import Shop

WEBHOOK_ID = "01920000-0000-7000-c000-0000000000aa"


def event(body: bytes, event_id: str = "e1", webhook_id: str = WEBHOOK_ID) -> StoredEvent:
    return StoredEvent(
        webhook_id=webhook_id,
        event_type="mail",
        event_id=event_id,
        method="POST",
        query="",
        headers={},
        body=body,
        received_at=CLICKED_AT,
    )


def ids(body: bytes, event_id: str = "e1", name: str = "shop") -> list[str | None]:
    return [each.message_id for each in following(Shop(name), event(body, event_id))]


def test_each_message_is_there_in_order_and_belongs_to_the_event() -> None:
    outgoing = following(Shop(), event(b"ann ben:part-2"))
    assert [each.message for each in outgoing] == [
        EmailRequested(to=f"{name}@shop.example", subject="s", text="t") for name in ("ann", "ben")
    ]
    assert {each.correlation_id for each in outgoing} == {WEBHOOK_ID}
    assert {(each.available_at, each.dedup_key) for each in outgoing} == {(None, None)}


def test_ids_are_what_they_have_always_been() -> None:
    # Databases know messages by these: were they others, a replay would do everything again.
    assert ids(b"ann ben:part-2") == [
        "747b06db-e204-54df-ad10-7cfa5dc0b757",
        "4ce266c9-0165-5e6d-b0ad-387fb1e6a245",
    ]


def test_ids_are_of_the_event_and_not_of_the_delivery() -> None:
    other_delivery = event(b"ann ben:part-2", webhook_id=WEBHOOK_ID.replace("aa", "bb"))
    told_again = [each.message_id for each in following(Shop(), other_delivery)]
    assert told_again == ids(b"ann ben:part-2")
    # A part that has an id of its own is the same in whatever event it comes.
    assert ids(b"ben:part-2", "e2") == ids(b"ann ben:part-2", "e1")[1:]


def test_ids_of_different_things_differ() -> None:
    made = [
        *ids(b"ann ann"),
        *ids(b"ann", "e2"),
        *ids(b"ann", name="mall"),
        *ids(b"ann:e1"),
        *ids(b"ann:part-2"),
        *ids(b"ann:part-2", name="mall"),
    ]
    assert len(set(made)) == 7


def test_a_part_that_is_told_twice_in_one_event_follows_once() -> None:
    outgoing = following(Shop(), event(b"ann:part-1 ben:part-2 ann:part-1"))
    assert [each.message_id for each in outgoing] == ids(b"ann:part-1 ben:part-2")


def test_nothing_follows_from_what_does_not_concern_us() -> None:
    assert following(Shop(), event(b"")) == []


def test_what_cannot_be_read_says_so() -> None:
    with pytest.raises(EventUnreadable, match="It names nobody"):
        following(Shop(), event(b"unreadable"))
