from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given, settings

from couponflow.config_sources import Msg91Settings
from couponflow.messages import SmsDeliveryReported
from couponflow.webhooks.contract import Delivery, Identity
from couponflow.webhooks.following import following
from couponflow.webhooks.sources.msg91 import Msg91Source
from tests.webhooks.sources.keeping import check_that_it_holds, kept, messages
from tests.webhooks.sources.mutations import (
    DEEP,
    NOW,
    anything,
    assert_unreadable,
    check_that_messages_fit_or_the_event_is_unreadable,
    one_character_off,
    one_value_off,
)

TOKEN = "0c1d6a5f9be24c37a1f0"
UUID = "0193a3b0-0000-7000-8000-00000000000a"
REQUEST_ID = "346c6f1e2a3b4c5d6e7f8091"
NUMBER = "919812345678"
REPORT = {
    "date": "2025-12-01 10:06:20",
    "number": NUMBER,
    "status": "1",
    "desc": "DELIVERED",
    "failedReason": "",
    "clientid": UUID,
}
V2 = [{"senderId": "CPFLOW", "requestId": REQUEST_ID, "report": [REPORT], "userId": "271828"}]
V3 = {"requestId": REQUEST_ID, "senderId": "CPFLOW", **REPORT}
V4 = [
    {
        "data": [
            {
                "meta": msgspec.json.encode({"requestId": REQUEST_ID, "clientId": UUID}).decode(),
                "description": "DELIVERED",
                "ts": "2025-12-01 10:06:20",
            }
        ],
        "event": "delivered",
    }
]
OWN = {
    "request_id": REQUEST_ID,
    "telNum": NUMBER,
    "status": "DELIVERED",
    "deliveryTime": "2025-12-01 10:06:20",
    "clientId": f'"{UUID}"',
    "failureReason": None,
}


def source(*tokens: str, utc_offset_minutes: int = 330) -> Msg91Source:
    return Msg91Source(
        Msg91Settings(webhook_token=tokens or (TOKEN,), utc_offset_minutes=utc_offset_minutes)
    )


SOURCE = source()


def of_body(body: bytes, token: str = TOKEN) -> Delivery:
    return Delivery(method="POST", token=token, body=body, received_at=NOW)


def json(told: object) -> Delivery:
    return of_body(msgspec.json.encode(told))


def form(told: object) -> Delivery:
    return of_body(urlencode({"data": msgspec.json.encode(told).decode()}).encode())


def reported(delivery: Delivery) -> list[SmsDeliveryReported]:
    made = messages(SOURCE, delivery)
    assert all(isinstance(message, SmsDeliveryReported) for message in made)
    return [message for message in made if isinstance(message, SmsDeliveryReported)]


def flat(**changes: Any) -> Delivery:
    return json(V3 | changes)


def test_it_is_known_by_the_token_in_its_path() -> None:
    assert SOURCE.verify(json(V3)) is None
    assert source("another", TOKEN).verify(json(V3)) is None


@pytest.mark.parametrize("token", ["", "another", TOKEN[:-1], TOKEN.upper(), TOKEN + "/"])
def test_without_the_token_it_is_refused(token: str) -> None:
    refused = SOURCE.verify(of_body(b"", token))
    assert refused is not None
    assert refused.reason == "bad-signature"
    assert TOKEN not in repr((refused, SOURCE))


@pytest.mark.parametrize("tokens", [(), ("",)])
def test_without_tokens_nobody_is_let_in(tokens: tuple[str, ...]) -> None:
    assert Msg91Source(Msg91Settings(webhook_token=tokens)).verify(of_body(b"", "")) is not None


@given(one_character_off(TOKEN))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_token_is_refused(token: str) -> None:
    assert SOURCE.verify(of_body(b"", token)) is not None
    assert source(token).verify(of_body(b"", TOKEN)) is not None


@given(anything(SOURCE.header_names))
@settings(max_examples=50, deadline=None)
def test_no_delivery_makes_it_raise(delivery: Delivery) -> None:
    check_that_it_holds(SOURCE, delivery)


@given(one_value_off([*V2, *V4, V3, OWN]))
@settings(max_examples=50, deadline=None)
def test_a_value_that_is_off_makes_no_message_that_does_not_fit(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)


@pytest.mark.parametrize(
    "body", [b"", b"7", b"[7", b"data=hello", b"a=1", b"\xff", DEEP, b"&a=1" * 30]
)
def test_what_is_none_of_its_formats_is_believed_and_unreadable(body: bytes) -> None:
    assert SOURCE.verify(of_body(body)) is None
    assert SOURCE.identify(of_body(body)) == Identity()
    assert_unreadable(SOURCE, body)


@pytest.mark.parametrize("told", [[], {}, [[[[[[[[V3]]]]]]]], [7, None, "a"], {"data": "a"}])
def test_what_holds_no_report_is_nothing(told: object) -> None:
    assert SOURCE.identify(json(told)) == Identity()
    assert reported(json(told)) == []


@pytest.mark.parametrize("delivery", [form(V2), json(V2), json(V3), form(V3), json(V4), json(OWN)])
def test_every_format_says_the_same(delivery: Delivery) -> None:
    assert reported(delivery) == [
        SmsDeliveryReported(
            provider="msg91",
            state="delivered",
            notification_id=UUID,
            provider_message_id=REQUEST_ID,
            # 04:36:20 UTC.
            occurred_at=1764563780.0,
        )
    ]


def test_another_offset_may_be_set() -> None:
    [message] = messages(source(utc_offset_minutes=0), json(V3))
    assert isinstance(message, SmsDeliveryReported)
    assert message.occurred_at == 1764563780.0 + 330 * 60


@pytest.mark.parametrize("date", ["", "soon", None, "01-12-2025"])
def test_an_unreadable_time_is_that_of_arrival(date: str | None) -> None:
    assert [message.occurred_at for message in reported(flat(date=date))] == [NOW]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("1", "delivered"),
        (1, "delivered"),
        ("2", "failed"),
        ("8", "sent"),
        ("9", "failed"),
        ("16", "failed"),
        ("17", "failed"),
        ("25", "failed"),
        ("Delivered", "delivered"),
        ("failed", "failed"),
        ("NDNC", "failed"),
        ("submitted", "sent"),
    ],
)
def test_every_code_has_a_state(status: object, state: str) -> None:
    assert [message.state for message in reported(flat(status=status))] == [state]
    assert SOURCE.identify(flat(status=status)).event_type == state


@pytest.mark.parametrize("status", ["3", "11", "", None, "opened"])
def test_another_code_is_nothing(status: object) -> None:
    assert reported(flat(status=status)) == []


def test_a_report_of_nobody_is_nothing() -> None:
    assert reported(flat(clientid="not a UUID", requestId="")) == []


def test_a_failure_says_why_without_the_number() -> None:
    for reason, told in [
        (f"Blocked {NUMBER} by +91 98123 45678", "Blocked ... by ..."),
        ("635 variable too long", "635 variable too long"),
        (f"{NUMBER} since 2025-12-01 10:06", "... since 2025-12-01 10:06"),
        ("", "ABSENT"),
    ]:
        delivery = flat(status="2", desc="ABSENT", failedReason=reason)
        assert [message.reason for message in reported(delivery)] == [told]
    assert [message.reason for message in reported(flat(desc="any"))] == [""]


def test_a_report_has_an_id_that_does_not_show_the_number() -> None:
    [one, other] = [SOURCE.identify(json(V3)), SOURCE.identify(flat(status="2"))]
    assert one.event_id
    assert NUMBER not in one.event_id
    assert one.event_id != other.event_id
    assert one.event_id == SOURCE.identify(form(V2)).event_id
    assert one.event_id != SOURCE.identify(flat(number="919812345679")).event_id
    assert one.event_id != SOURCE.identify(flat(date="2025-12-01 10:06:21")).event_id
    assert SOURCE.identify(flat(requestId="")).event_id == ""


def test_a_report_that_comes_again_among_others_has_the_same_message_id() -> None:
    other = REPORT | {"number": "919800000001"}
    delivery = form([V2[0] | {"report": [other, REPORT]}])
    assert SOURCE.identify(delivery) == Identity("batch")
    [_, again] = following(SOURCE, kept(SOURCE, delivery))
    [once] = following(SOURCE, kept(SOURCE, json(V3)))
    assert once.message_id == again.message_id
