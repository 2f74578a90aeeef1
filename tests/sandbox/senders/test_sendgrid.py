"""SendGrid tells of emails in signed batches, with our id of each among its fields."""

import random
from functools import partial

from couponflow.sandbox.senders.sendgrid import email_events, engagement_events
from tests.sandbox.senders.lives import BEGAN, bodies, courses, lives_of

NOTIFICATIONS = [f"00000000-0000-4000-8000-{number:012}" for number in range(40)]
EMAILS = partial(email_events, NOTIFICATIONS, BEGAN)


def test_emails_take_every_way() -> None:
    lives = lives_of(partial(email_events, NOTIFICATIONS[:1], BEGAN))
    assert courses(lives, "email") == {
        ("sent", "delivered"),
        ("sent", "deferred", "delivered"),
        ("sent", "deferred", "bounced"),
        ("sent", "bounced"),
        ("sent", "dropped"),
        ("sent", "delivered", "complained"),
    }


def test_a_batch_is_an_array_that_ends_in_cr_lf_with_custom_arguments_at_the_top() -> None:
    batches = EMAILS(random.Random(3))
    assert all(batch.body.endswith(b"}]\r\n") for batch in batches)
    entries = [entry for batch in bodies(batches) for entry in batch]
    required = {
        *("email", "timestamp", "event", "sg_event_id", "sg_message_id", "smtp-id", "category"),
        "notification_id",
    }
    assert all(set(entry) >= required for entry in entries)
    assert {entry["notification_id"] for entry in entries} == set(NOTIFICATIONS)
    bounce = next(entry for entry in entries if entry["event"] == "bounce")
    assert (bounce["type"], bounce["status"]) == ("bounce", "5.1.1")


def test_now_and_then_an_event_comes_again_in_the_next_batch() -> None:
    ids = [entry["sg_event_id"] for batch in bodies(EMAILS(random.Random(3))) for entry in batch]
    repeated = len(ids) - len(set(ids))
    assert 0 < repeated < len(ids) / 4


def test_without_notifications_emails_are_opened_and_no_more() -> None:
    (batch,) = engagement_events(BEGAN, random.Random(3))
    (entries,) = bodies([batch])
    assert batch.told == ()
    assert [entry["event"] for entry in entries] == ["open", "click"]
    assert not any("notification_id" in entry for entry in entries)
    assert email_events([], BEGAN, random.Random(3)) == []
