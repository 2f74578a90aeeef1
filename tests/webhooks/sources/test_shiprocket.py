from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from couponflow.config_sources import ShiprocketSettings
from couponflow.messages import ShipmentReported
from couponflow.webhooks.contract import Delivery, Identity
from couponflow.webhooks.sources.shiprocket import TOKEN_HEADER, ShiprocketSource
from tests.webhooks.sources.keeping import check_that_it_holds, kept, messages
from tests.webhooks.sources.mutations import (
    NOW,
    anything,
    assert_unreadable,
    check_that_messages_fit_or_the_event_is_unreadable,
    one_character_off,
    one_value_off,
)

TOKEN = "a-token-of-32-characters-or-more"
PARCEL: dict[str, Any] = {
    "awb": "19041424750001",
    "courier_name": "Delhivery Surface",
    "current_status": "IN TRANSIT",
    "current_status_id": 20,
    "shipment_status": "IN TRANSIT",
    "shipment_status_id": 18,
    "current_timestamp": "01 12 2025 11:43:52",
    "order_id": "1373900_150876",
    "sr_order_id": 348456385,
    "etd": "2025-12-02 15:40:19",
    "scans": [
        {"date": "2025-11-28 15:32:17", "activity": "Shipment picked up", "sr-status": "42"},
        {"date": "2025-11-29 02:11:03", "activity": "Bag received", "sr-status": "NA"},
    ],
    "is_return": 0,
}


def source(*tokens: str, utc_offset_minutes: int = 330) -> ShiprocketSource:
    return ShiprocketSource(
        ShiprocketSettings(webhook_token=tokens or (TOKEN,), utc_offset_minutes=utc_offset_minutes)
    )


SOURCE = source()


def told(**changes: Any) -> Delivery:
    return Delivery(
        method="POST",
        headers={TOKEN_HEADER: TOKEN},
        body=msgspec.json.encode(PARCEL | changes),
        received_at=NOW,
    )


def reported(**changes: Any) -> ShipmentReported:
    [message] = messages(SOURCE, told(**changes))
    assert isinstance(message, ShipmentReported)
    return message


def with_token(*, header: str = "", path: str = "") -> Delivery:
    return msgspec.structs.replace(told(), headers={TOKEN_HEADER: header}, token=path)


@pytest.mark.parametrize("delivery", [with_token(header=TOKEN), with_token(path=TOKEN)])
def test_it_is_known_by_a_token_in_its_header_or_path(delivery: Delivery) -> None:
    assert SOURCE.verify(delivery) is None
    assert source("another", TOKEN).verify(delivery) is None


@pytest.mark.parametrize(
    "delivery", [with_token(), with_token(header="no"), with_token(path=TOKEN[:-1])]
)
def test_without_the_token_it_is_refused(delivery: Delivery) -> None:
    refused = SOURCE.verify(delivery)
    assert refused is not None
    assert refused.reason == "bad-signature"
    assert TOKEN not in repr((refused, SOURCE))


@pytest.mark.parametrize("tokens", [(), ("",)])
def test_without_tokens_nobody_is_let_in(tokens: tuple[str, ...]) -> None:
    unarmed = ShiprocketSource(ShiprocketSettings(webhook_token=tokens))
    assert unarmed.verify(with_token()) is not None


@given(one_character_off(TOKEN))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_token_is_refused(token: str) -> None:
    assert SOURCE.verify(with_token(header=token, path=token)) is not None
    assert source(token).verify(with_token(header=TOKEN, path=TOKEN)) is not None


@given(anything(SOURCE.header_names))
@settings(max_examples=50, deadline=None)
def test_no_delivery_makes_it_raise(delivery: Delivery) -> None:
    check_that_it_holds(SOURCE, delivery)


@given(one_value_off(PARCEL))
@settings(max_examples=50, deadline=None)
def test_a_value_that_is_off_makes_no_message_that_does_not_fit(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)


def test_the_token_is_never_written_down() -> None:
    event = kept(SOURCE, msgspec.structs.replace(told(), query=f"a=1&token={TOKEN}"))
    assert TOKEN not in repr(event)
    assert event.query == "a=1"


def test_an_event_is_called_by_parcel_status_and_last_scan() -> None:
    assert SOURCE.identify(told()) == Identity(
        "IN TRANSIT", "19041424750001:18:2025-11-29 02:11:03"
    )


@pytest.mark.parametrize("scans", [None, [], 7, "none", {}, {"date": 1}, [None, 7, [], {}]])
def test_an_event_without_scans_is_called_by_its_own_time(scans: object) -> None:
    identity = SOURCE.identify(told(scans=scans))
    assert identity.event_id == "19041424750001:18:01 12 2025 11:43:52"
    message = reported(scans=scans)
    assert (message.state, message.detail) == ("in_transit", "")


@pytest.mark.parametrize("awb", [None, "", "a\0b", "1" * 201, [1]])
def test_an_event_of_no_parcel_has_no_id_and_no_message(awb: object) -> None:
    assert SOURCE.identify(told(awb=awb)) == Identity("IN TRANSIT")
    assert_unreadable(SOURCE, told(awb=awb).body, saying="tracking_code")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"scans": 7}', b"\xff"])
def test_what_is_no_event_is_unreadable(body: bytes) -> None:
    assert SOURCE.identify(msgspec.structs.replace(told(), body=body)) == Identity()
    assert_unreadable(SOURCE, body)


def test_a_parcel_is_reported_in_the_time_of_its_country() -> None:
    assert reported() == ShipmentReported(
        provider="shiprocket",
        tracking_code="19041424750001",
        carrier="Delhivery Surface",
        order_number="1373900_150876",
        state="in_transit",
        state_native="IN TRANSIT",
        detail="Bag received",
        # 06:13:52 UTC.
        occurred_at=1764569632.0,
    )


def test_another_offset_may_be_set() -> None:
    [message] = messages(source(utc_offset_minutes=0), told())
    assert isinstance(message, ShipmentReported)
    assert message.occurred_at == 1764569632.0 + 330 * 60


@pytest.mark.parametrize("timestamp", [None, "", "2025-12-01 11:43:52", "32 12 2025 11:43:52", 7])
def test_an_unreadable_time_is_that_of_arrival(timestamp: object) -> None:
    assert reported(current_timestamp=timestamp).occurred_at == NOW


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (1, "pre_transit"),
        (6, "in_transit"),
        (7, "delivered"),
        ("7", "delivered"),
        (8, "cancelled"),
        (9, "return_to_sender"),
        (10, "returned"),
        (12, "failure"),
        (16, "unknown"),
        (17, "out_for_delivery"),
        (19, "pre_transit"),
        (20, "pre_transit"),
        (21, "failure"),
        (23, "failure"),
        (42, "in_transit"),
        (46, "return_to_sender"),
    ],
)
def test_a_status_is_that_of_the_shipment_table_whatever_its_label(
    number: object, state: str
) -> None:
    assert reported(shipment_status_id=number, shipment_status="DELIVERED").state == state


@pytest.mark.parametrize(
    ("number", "is_return", "state"),
    [
        (7, 0, "delivered"),
        (7, 1, "returned"),
        (7, "1", "returned"),
        (7, True, "returned"),
        (17, 1, "return_to_sender"),
        (18, 1, "in_transit"),
        (10, 1, "returned"),
        (7, None, "delivered"),
    ],
)
def test_what_goes_back_is_never_on_its_way_to_the_customer(
    number: int, is_return: object, state: str
) -> None:
    assert reported(shipment_status_id=number, is_return=is_return).state == state


@pytest.mark.parametrize(
    ("label", "state"),
    [
        ("Delivered", "delivered"),
        ("UNDELIVERED", "failure"),
        ("PARTIAL_DELIVERED", "failure"),
        ("Out-For Delivery", "out_for_delivery"),
        ("RTO Delivered", "returned"),
        ("NOT DELIVERED", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_number_that_is_not_known_leaves_the_whole_label(label: str, state: str) -> None:
    changes = {"shipment_status_id": 99, "shipment_status": label, "current_status": ""}
    assert reported(**changes).state == state


def test_the_label_of_the_order_stands_in_for_a_missing_one() -> None:
    message = reported(shipment_status_id=None, shipment_status=None, current_status="LOST")
    assert (message.state, message.state_native) == ("failure", "LOST")
