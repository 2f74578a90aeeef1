"""MSG91 reports on text messages in three formats, none of which is like another."""

import json
import random
from functools import partial
from urllib.parse import parse_qs

from couponflow.sandbox.senders.msg91 import reports_by_notification, reports_by_request
from tests.sandbox.senders.lives import BEGAN, bodies, courses, lives_of

NOTIFICATION = "00000000-0000-4000-8000-000000000001"
REQUEST = "346c6f1e2a3b4c5d6e7f8091"
LIVES = lives_of(partial(reports_by_notification, [NOTIFICATION], BEGAN))


def test_text_messages_take_every_way() -> None:
    assert courses(LIVES, "sms") == {
        ("sent", "delivered"),
        ("delivered",),
        ("sent", "failed"),
        ("failed",),
    }


def test_the_second_version_is_a_form_whose_one_field_is_a_list_as_json() -> None:
    events = [event for life in LIVES for event in life if event.event_type == "v2"]
    assert len(events) > 10
    for event in events:
        assert event.content_type == "application/x-www-form-urlencoded"
        form = parse_qs(event.body.decode())
        assert set(form) == {"data"}
        (batch,) = json.loads(form["data"][0])
        assert set(batch) == {"senderId", "requestId", "report", "userId", "campaignName"}
        (report,) = batch["report"]
        assert report["clientid"] == NOTIFICATION
        assert report["status"] in ("1", "2", "8")
        assert (report["failedReason"] != "") == (report["status"] == "2")


def test_the_new_webhook_is_a_flat_object_of_its_placeholders() -> None:
    events = [event for life in LIVES for event in life if event.event_type == "new"]
    assert len(events) > 10
    for report in bodies(events):
        assert report["clientId"] == NOTIFICATION
        assert {"requestId", "status", "deliveryTime", "telNum", "failureReason"} <= set(report)


def test_the_third_version_is_a_flat_object_known_by_msg91s_own_id() -> None:
    for report in bodies(reports_by_request([REQUEST], BEGAN, random.Random(4))):
        assert set(report) == {
            *("date", "number", "senderId", "amount", "requestId", "INMSID", "CRQID", "credit"),
            *("userId", "campaignName", "status", "desc"),
        }
        assert report["requestId"] == REQUEST


def test_times_are_indian_and_say_no_zone() -> None:
    # 1789900000 is 2026-09-20 10:26:40 UTC, and the report comes within ten minutes.
    (first, *_) = bodies(reports_by_request([REQUEST], BEGAN, random.Random(4)))
    assert first["date"].startswith(("2026-09-20 15:5", "2026-09-20 16:0"))
