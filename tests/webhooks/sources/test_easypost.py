import hmac
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from couponflow.config_sources import EasypostSettings
from couponflow.messages import ShipmentReported
from couponflow.webhooks.contract import Delivery, Identity
from couponflow.webhooks.sources.easypost import SIGNATURE_HEADER, EasypostSource
from tests.webhooks.sources.keeping import check_that_it_holds, messages
from tests.webhooks.sources.mutations import (
    NOW,
    anything,
    assert_unreadable,
    check_that_messages_fit_or_the_event_is_unreadable,
    one_byte_off,
    one_character_off,
    one_value_off,
)

# Computed with EasyPost's library.
SECRET = "s\u00e9cret"
BODY = b'{"id":"evt_1","object":"Event"}'
SIGNATURE = "hmac-sha256-hex=17006b8eff08bd0d7eca5be9af7b35a3eb15dcd6774cb38553822743f11f2deb"
PUBLISHED = Delivery(
    method="POST", headers={SIGNATURE_HEADER: SIGNATURE}, body=BODY, received_at=NOW
)
# Without 2 and 3, which are also spelled ² and ³: to NFKD they are the same.
ASCII_SECRET = "whsec-easypost"

TRACKER: dict[str, Any] = {
    "id": "trk_9f2",
    "object": "Tracker",
    "tracking_code": "EZ4000000004",
    "carrier": "USPS",
    "status": "delivered",
    "status_detail": "arrived_at_destination",
    "weight": 17.6,
    "tracking_details": [
        {"message": "Delivered", "datetime": "2025-12-01T09:58:00Z"},
        {"message": "On its way", "datetime": "2025-11-30T09:58:00Z"},
        {"message": "Label made", "datetime": None},
    ],
}
EVENT: dict[str, Any] = {
    "id": "evt_7c1",
    "object": "Event",
    "description": "tracker.updated",
    "created_at": "2025-12-01T10:00:00.000Z",
    "updated_at": "2025-12-01T10:00:01.000Z",
    "result": TRACKER,
}


def source(*secrets: str) -> EasypostSource:
    return EasypostSource(EasypostSettings(webhook_secret=secrets or (SECRET,)))


SOURCE = source()


def signed(body: bytes, secret: str) -> Delivery:
    digest = hmac.digest(secret.encode(), body, "sha256").hex()
    return Delivery(
        method="POST",
        headers={SIGNATURE_HEADER: f"hmac-sha256-hex={digest}"},
        body=body,
        received_at=NOW,
    )


def delivered(**changes: Any) -> Delivery:
    return signed(msgspec.json.encode(EVENT | changes), ASCII_SECRET)


def reported(delivery: Delivery) -> ShipmentReported:
    [message] = messages(SOURCE, delivery)
    assert isinstance(message, ShipmentReported)
    return message


def test_the_published_vector_is_verified() -> None:
    assert SOURCE.verify(PUBLISHED) is None


def test_a_secret_is_the_same_however_its_accents_are_written() -> None:
    assert source("se\u0301cret").verify(PUBLISHED) is None


def test_any_of_several_secrets_will_do() -> None:
    assert source("another", SECRET).verify(PUBLISHED) is None


@pytest.mark.parametrize("secrets", [(), ("",), ("another",)])
def test_without_the_secret_it_is_refused(secrets: tuple[str, ...]) -> None:
    other = EasypostSource(EasypostSettings(webhook_secret=secrets))
    refused = other.verify(PUBLISHED)
    assert refused is not None
    assert refused.reason == "bad-signature"


def test_an_empty_secret_lets_nobody_in() -> None:
    assert (
        EasypostSource(EasypostSettings(webhook_secret=("",))).verify(signed(BODY, "")) is not None
    )


@pytest.mark.parametrize(
    "header", ["", SIGNATURE.upper(), SIGNATURE.partition("=")[2], SIGNATURE[:-1]]
)
def test_another_spelling_of_the_signature_is_refused(header: str) -> None:
    delivery = msgspec.structs.replace(PUBLISHED, headers={SIGNATURE_HEADER: header})
    assert SOURCE.verify(delivery) is not None


@given(one_byte_off(BODY))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_body_is_refused(body: bytes) -> None:
    assert SOURCE.verify(msgspec.structs.replace(PUBLISHED, body=body)) is not None


@given(one_character_off(SIGNATURE))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_header_is_refused(header: str) -> None:
    headers = {SIGNATURE_HEADER: header}
    assert SOURCE.verify(msgspec.structs.replace(PUBLISHED, headers=headers)) is not None


@given(one_character_off(ASCII_SECRET))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_secret_is_refused(secret: str) -> None:
    assert source(secret).verify(delivered()) is not None


@given(anything(SOURCE.header_names, [SIGNATURE]))
@settings(max_examples=50, deadline=None)
def test_no_delivery_makes_it_raise(delivery: Delivery) -> None:
    check_that_it_holds(SOURCE, delivery)


@given(one_value_off(EVENT))
@settings(max_examples=50, deadline=None)
def test_a_value_that_is_off_makes_no_message_that_does_not_fit(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)


def test_an_event_is_called_by_its_id_and_description() -> None:
    assert SOURCE.identify(delivered()) == Identity("tracker.updated", "evt_7c1")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"id": "a\\u0000b", "description": [1]}'])
def test_what_cannot_be_called_anything_is_not(body: bytes) -> None:
    assert SOURCE.identify(signed(body, ASCII_SECRET)) == Identity()


def test_a_tracker_is_reported_as_it_was_last_seen() -> None:
    assert reported(delivered()) == ShipmentReported(
        provider="easypost",
        tracking_code="EZ4000000004",
        carrier="USPS",
        state="delivered",
        state_native="delivered",
        detail="arrived_at_destination",
        # Seen at 09:58, told at 10:00.
        occurred_at=1764583200.0,
    )


@pytest.mark.parametrize(
    ("tracker", "event", "occurred_at"),
    [
        ({"updated_at": "2025-12-01T09:00:00Z"}, {}, 1764579600.0),
        ({"updated_at": 7.5}, {}, 1764583200.0),
        ({}, {}, 1764583200.0),
        ({}, {"created_at": None}, 1764583201.0),
        ({}, {"updated_at": "soon", "created_at": None}, NOW),
    ],
)
def test_a_tracker_that_was_seen_nowhere_is_as_old_as_what_says_so(
    tracker: dict[str, str], event: dict[str, str], occurred_at: float
) -> None:
    unseen = TRACKER | {"tracking_details": []} | tracker
    assert reported(delivered(result=unseen, **event)).occurred_at == occurred_at


def test_a_scan_that_is_later_than_all_that_was_written_counts() -> None:
    older = {"updated_at": "2025-12-01T09:00:00Z"}
    assert reported(delivered(result=TRACKER | older)).occurred_at == 1764583080.0


def test_of_two_states_at_one_scan_the_one_that_was_written_later_is_later() -> None:
    first = delivered(result=TRACKER | {"updated_at": "2025-12-01T09:59:00Z", "status": "unknown"})
    second = delivered(result=TRACKER | {"updated_at": "2025-12-01T09:59:10Z"})
    assert reported(first).occurred_at < reported(second).occurred_at


@pytest.mark.parametrize("details", [None, 7, "none", {}, {"datetime": 1}, [None, 7, [], {}]])
def test_details_of_any_kind_hide_no_state(details: object) -> None:
    odd = {"tracking_details": details, "status_detail": [], "carrier": {}}
    message = reported(delivered(result=TRACKER | odd))
    assert (message.state, message.detail, message.carrier) == ("delivered", "", "")
    assert message.occurred_at == 1764583200.0


@pytest.mark.parametrize(
    ("is_return", "state"),
    [(True, "returned"), (False, "delivered"), (None, "delivered"), ([], "delivered")],
)
def test_a_return_is_delivered_to_the_shop(is_return: object, state: str) -> None:
    assert reported(delivered(result=TRACKER | {"is_return": is_return})).state == state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("unknown", "unknown"),
        ("pre_transit", "pre_transit"),
        ("in_transit", "in_transit"),
        ("out_for_delivery", "out_for_delivery"),
        ("available_for_pickup", "available_for_pickup"),
        ("return_to_sender", "return_to_sender"),
        ("failure", "failure"),
        ("cancelled", "cancelled"),
        ("error", "unknown"),
        ("a new one", "unknown"),
    ],
)
def test_every_status_has_a_state(status: str, state: str) -> None:
    message = reported(delivered(result=TRACKER | {"status": status}))
    assert (message.state, message.state_native) == (state, status)


@pytest.mark.parametrize("description", ["batch.created", "refund.successful", None, 7])
def test_other_events_are_nothing(description: object) -> None:
    assert messages(SOURCE, delivered(description=description, result={"id": "batch_1"})) == []


@pytest.mark.parametrize(
    "result", [None, {}, TRACKER | {"tracking_code": ""}, TRACKER | {"tracking_code": None}]
)
def test_a_tracker_without_a_code_is_unreadable(result: object) -> None:
    assert_unreadable(SOURCE, delivered(result=result).body, saying="result|tracking_code")
