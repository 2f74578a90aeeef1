import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings

from couponflow.config_sources import SendgridSettings
from couponflow.messages import EmailDeliveryReported
from couponflow.webhooks.contract import Delivery, Identity
from couponflow.webhooks.following import following
from couponflow.webhooks.sources.sendgrid import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    SendgridSource,
)
from tests.webhooks.sources.keeping import check_that_it_holds, kept, messages
from tests.webhooks.sources.mutations import (
    DEEP,
    NOW,
    anything,
    assert_unreadable,
    check_that_messages_fit_or_the_event_is_unreadable,
    one_byte_off,
    one_character_off,
    one_value_off,
)

# Published with sendgrid-python.
KEY = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw"
    "+2fNNRaINXvVpiglSI8eNEc6wEA3F+g=="
)
OTHER_KEY = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqTxd43gyp8IOEto2LdIfjRQrIbsd4SXZkLW6jDutdhXSJCWHw8REntlo7"
    "aNDthvj+y7GjUuFDb/R1NGe1OPzpA=="
)
TIMESTAMP = "1600112502"
SIGNATURE = (
    "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15Tl"
    "uLtEZtM="
)
BODY = (
    b'[{"email":"hello@world.com","event":"dropped","reason":"Bounced Address",'
    b'"sg_event_id":"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA",'
    b'"sg_message_id":"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0",'
    b'"smtp-id":"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>","timestamp":1600112492}]\r\n'
)
PUBLISHED = Delivery(
    method="POST",
    headers={SIGNATURE_HEADER: SIGNATURE, TIMESTAMP_HEADER: TIMESTAMP},
    body=BODY,
    received_at=1600112503.0,
)
UUID = "0193a3b0-0000-7000-8000-00000000000a"

PRIVATE = ec.derive_private_key(20_251_201, ec.SECP256R1())
PUBLIC = base64.b64encode(
    PRIVATE.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()


def source(*keys: str, tolerance_seconds: float = 90_000.0) -> SendgridSource:
    return SendgridSource(
        SendgridSettings(webhook_public_key=keys or (KEY,), tolerance_seconds=tolerance_seconds)
    )


SOURCE = source()
UNHURRIED = source(tolerance_seconds=0.0)


def batch(*events: object, received_at: float = NOW) -> Delivery:
    body = msgspec.json.encode(events) + b"\r\n"
    timestamp = str(int(NOW))
    signature = base64.b64encode(PRIVATE.sign(timestamp.encode() + body, ec.ECDSA(SHA256())))
    return Delivery(
        method="POST",
        headers={SIGNATURE_HEADER: signature.decode(), TIMESTAMP_HEADER: timestamp},
        body=body,
        received_at=received_at,
    )


def event(kind: object, **fields: object) -> dict[str, object]:
    return {
        "event": kind,
        "email": "asha@example.com",
        "timestamp": 1764548000,
        "sg_event_id": f"id-of-{kind}",
        "sg_message_id": "Ua9z9lSTSaqYBWJe_Xfc-Q.filterdrecv-5f-1-0.0",
        **fields,
    }


def reported(delivery: Delivery) -> list[EmailDeliveryReported]:
    told = messages(SOURCE, delivery)
    assert all(isinstance(message, EmailDeliveryReported) for message in told)
    return [message for message in told if isinstance(message, EmailDeliveryReported)]


def with_headers(signature: str, timestamp: str) -> Delivery:
    headers = {SIGNATURE_HEADER: signature, TIMESTAMP_HEADER: timestamp}
    return msgspec.structs.replace(PUBLISHED, headers=headers)


def test_the_published_vector_is_verified() -> None:
    digest = "ef3e4606385ea6adbc55fceb6117cf2784040cf145a010e5ef4afc2bc7c70452"
    assert hashlib.sha256(BODY).hexdigest() == digest
    assert SOURCE.verify(PUBLISHED) is None


def test_the_published_vector_without_its_line_end_is_refused() -> None:
    refused = SOURCE.verify(msgspec.structs.replace(PUBLISHED, body=BODY.rstrip()))
    assert refused is not None
    assert refused.reason == "bad-signature"


def test_the_published_vector_with_the_wrong_key_is_refused() -> None:
    refused = source(OTHER_KEY).verify(PUBLISHED)
    assert refused is not None
    assert refused.reason == "bad-signature"


def test_any_of_several_keys_will_do() -> None:
    assert source(OTHER_KEY, KEY).verify(PUBLISHED) is None


def test_an_empty_key_is_left_out() -> None:
    assert source("", KEY, " ").verify(PUBLISHED) is None


def test_without_a_key_nothing_is_verified() -> None:
    assert SendgridSource(SendgridSettings()).verify(PUBLISHED) is not None


@pytest.mark.parametrize("off", [-301.0, 301.0])
def test_what_was_signed_too_far_from_now_is_stale(off: float) -> None:
    delivery = batch(event("delivered"), received_at=NOW + off)
    refused = source(PUBLIC, tolerance_seconds=300.0).verify(delivery)
    assert refused is not None
    assert refused.reason == "stale"
    assert source(PUBLIC, tolerance_seconds=0.0).verify(delivery) is None


@given(one_byte_off(BODY))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_body_is_refused(body: bytes) -> None:
    assert SOURCE.verify(msgspec.structs.replace(PUBLISHED, body=body)) is not None


@given(one_character_off(SIGNATURE))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_signature_is_refused(signature: str) -> None:
    assert SOURCE.verify(with_headers(signature, TIMESTAMP)) is not None


@given(one_character_off(TIMESTAMP))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_timestamp_is_refused(timestamp: str) -> None:
    assert UNHURRIED.verify(with_headers(SIGNATURE, timestamp)) is not None


@given(one_byte_off(base64.b64decode(KEY)))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_key_is_another_key_or_none(der: bytes) -> None:
    with suppress(ValueError):
        assert source(base64.b64encode(der).decode()).verify(PUBLISHED) is not None


@given(anything(SOURCE.header_names, [SIGNATURE, TIMESTAMP]))
@settings(max_examples=50, deadline=None)
def test_no_delivery_makes_it_raise(delivery: Delivery) -> None:
    check_that_it_holds(SOURCE, delivery)


@given(one_value_off([event("bounce", type="bounce", message_key=UUID), event("open")]))
@settings(max_examples=50, deadline=None)
def test_a_value_that_is_off_makes_no_message_that_does_not_fit(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)


@pytest.mark.parametrize(
    "key",
    [
        "not base64",
        KEY[:-8],
        # A key for another curve: P-384.
        base64.b64encode(
            ec.derive_private_key(7, ec.SECP384R1())
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).decode(),
    ],
)
def test_a_key_that_is_none_is_named_by_its_place(key: str) -> None:
    with pytest.raises(ValueError, match="webhook_public_key: number 2 is not a P-256"):
        source(KEY, key)


@pytest.mark.parametrize(
    ("events", "event_type"),
    [
        ([event("bounce"), event("bounce")], "bounce"),
        ([event("bounce"), event("open")], "batch"),
        ([], "batch"),
        ([7], ""),
    ],
)
def test_a_batch_is_called_by_the_one_kind_in_it(events: list[object], event_type: str) -> None:
    assert SOURCE.identify(batch(*events)) == Identity(event_type)


def test_a_bounce_is_reported_by_both_ids() -> None:
    delivery = batch(
        event(
            "bounce", type="bounce", reason="550 5.1.1 <asha@example.com> unknown", message_key=UUID
        )
    )
    assert reported(delivery) == [
        EmailDeliveryReported(
            provider="sendgrid",
            state="bounced",
            notification_id=UUID,
            provider_message_id="Ua9z9lSTSaqYBWJe_Xfc-Q",
            reason="550 5.1.1 <...> unknown",
            occurred_at=1764548000,
        )
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "state"),
    [
        ("processed", {}, "sent"),
        ("deferred", {"response": "451 try later"}, "deferred"),
        ("delivered", {"response": "250 OK"}, "delivered"),
        ("bounce", {"type": "bounce"}, "bounced"),
        ("bounce", {"type": "blocked"}, "failed"),
        ("dropped", {"reason": "Bounced Address"}, "dropped"),
        ("spamreport", {}, "complained"),
    ],
)
def test_events_of_a_delivery_are_reported(
    kind: str, fields: Mapping[str, object], state: str
) -> None:
    assert [message.state for message in reported(batch(event(kind, **fields)))] == [state]


@pytest.mark.parametrize(
    "kind",
    [
        "open",
        "click",
        "unsubscribe",
        "group_unsubscribe",
        "account_status_change",
        "new",
        None,
        [1],
    ],
)
def test_other_events_are_nothing(kind: object) -> None:
    assert reported(batch(event(kind))) == []


def test_an_event_of_nobody_is_nothing() -> None:
    told = event("bounce", sg_message_id=None, notification_id="not a UUID", message_key=7)
    assert reported(batch(told)) == []


def test_the_one_who_sent_it_is_known_by_our_id_alone() -> None:
    told = reported(batch(event("bounce", sg_message_id="", notification_id=UUID)))
    assert [(one.notification_id, one.provider_message_id) for one in told] == [(UUID, None)]


def test_odd_events_of_a_batch_lose_no_others() -> None:
    delivery = batch(
        7, event("bounce", timestamp="soon", reason={"a": 1}), {"event": 3}, event("delivered")
    )
    assert [(one.state, one.occurred_at, one.reason) for one in reported(delivery)] == [
        ("bounced", NOW, ""),
        ("delivered", 1764548000, ""),
    ]


@pytest.mark.parametrize("body", [b"", b"{}", b"[7]", b'["a", null]', b"[{]", b"\xff", DEEP])
def test_what_is_no_batch_is_unreadable(body: bytes) -> None:
    assert_unreadable(SOURCE, body)


def test_an_event_that_comes_again_in_another_batch_has_the_same_message_id() -> None:
    once = following(SOURCE, kept(SOURCE, batch(event("delivered"))))
    again = following(SOURCE, kept(SOURCE, batch(event("bounce"), event("delivered"))))
    assert once[0].message_id == again[1].message_id
    assert again[0].message_id != again[1].message_id
