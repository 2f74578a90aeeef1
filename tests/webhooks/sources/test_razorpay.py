import copy
import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.config_sources import RazorpaySettings
from couponflow.messages import Message, PaymentReported, PayoutReported, RefundReported
from couponflow.webhooks.contract import Delivery, Identity, Refused, Translated
from couponflow.webhooks.signatures import from_hex, hmac_matches
from couponflow.webhooks.sources.razorpay import RazorpaySource
from tests.webhooks.sources.mutations import (
    DEEP,
    NOW,
    anything,
    assert_unreadable,
    changed,
    check_that_messages_fit_or_the_event_is_unreadable,
    check_that_nothing_is_raised,
    one_byte_off,
    one_character_off,
    one_value_off,
    stored,
    without,
)

SECRET = "whsec_rzp_test"
SOURCE = RazorpaySource(RazorpaySettings(webhook_secret=(SECRET, "the-one-before")))

PLAIN = (
    b'{"entity":"event","event":"payment.captured","contains":["payment"],"created_at":1700000000}'
)
PLAIN_SIGNATURE = "16110c3dea2749135c7f860bdf60c8ac662ad449e6b8021a563e0487252a0cff"
NOT_ASCII = '{"notes":{"name":"Śrī ₹"}}'.encode()
NOT_ASCII_SIGNATURE = "ebb9904d179037cc1d39a3d32bf86670a50c23f0cd2fdc92a76a76c306f77cfe"

# From the tests of Razorpay's library: with the newline at its end, and without.
LIBRARYS_SECRET = "key_secret"
LIBRARYS = b"""{
  "event": "payment.authorized",
  "entity": "event",
  "contains": [
    "payment"
  ],
  "payload": {
    "payment": {
      "entity": {
        "id": "pay_6koWN7bvxujzxM",
        "entity": "payment",
        "amount": 1000000,
        "currency": "INR",
        "status": "captured",
        "order_id": "order_100000000order",
        "international": false,
        "method": "card",
        "amount_refunded": 0,
        "refund_status": null,
        "captured": true,
        "description": "random description",
        "card_id": "card_6koWNAT6LASUqy",
        "bank": null,
        "wallet": null,
        "vpa": null,
        "email": "a@b.com",
        "contact": "+919999999999",
        "notes": {
          "merchant_order_id": "random order id"
        },
        "fee": 23000,
        "service_tax": 3000,
        "error_code": null,
        "error_description": null,
        "created_at": 1479978483
      }
    }
  },
  "created_at": 1400826760
}
"""
LIBRARYS_SIGNATURE = "d60e67fd884556c045e9be7dad57903e33efc7172c17c6e3ef77db42d2b366e9"
LIBRARYS_SIGNATURE_WITHOUT_NEWLINE = (
    "0971cde1d9216765d9aa72c766aef4a913fedfd2d36cc05cbca5de1ef90c12e4"
)

PAYMENT = {
    "id": "pay_PgQ1x7aB2cD3eF",
    "entity": "payment",
    "amount": 49900,
    "currency": "INR",
    "status": "captured",
    "order_id": "order_PgQ0w6zA1bC2dE",
    "captured": True,
    "method": "upi",
    "notes": [],
    "error_code": None,
    "error_description": None,
    "acquirer_data": {"rrn": "412345678901"},
    "created_at": 1764547265,
}
ORDER = {
    "id": "order_PgQ0w6zA1bC2dE",
    "entity": "order",
    "amount": 49900,
    "currency": "INR",
    "receipt": "cf-inv-000123",
    "status": "paid",
    "notes": [],
    "created_at": 1764547200,
}
REFUND = {
    "id": "rfnd_PgR0000000000A",
    "entity": "refund",
    "amount": 10000,
    "currency": "INR",
    "payment_id": "pay_PgQ1x7aB2cD3eF",
    "status": "processed",
    "created_at": 1764548000,
}
PAYOUT = {
    "id": "pout_PhA7b8C9d0E1f2",
    "entity": "payout",
    "amount": 25000,
    "currency": "INR",
    "status": "processed",
    "utr": "533412345678",
    "reference_id": "cb-2025-11-000042",
    "status_details": {"reason": "payout_processed", "description": "Credited", "source": "bank"},
    "created_at": 1764550000,
}


def event(name: str, **entities: object) -> dict[str, object]:
    payload = {entity: {"entity": copy.deepcopy(each)} for entity, each in entities.items()}
    return {"entity": "event", "event": name, "payload": payload, "created_at": 1764547268}


ORDER_PAID = event("order.paid", payment=PAYMENT, order=ORDER)
CAPTURED = event("payment.captured", payment=PAYMENT)
REFUNDED = event("refund.processed", refund=REFUND, payment=PAYMENT)
PAID_OUT = event("payout.processed", payout=PAYOUT)


def delivery(body: bytes, signature: str | None, event_id: str = "") -> Delivery:
    headers = {"x-razorpay-event-id": event_id}
    if signature is not None:
        headers["x-razorpay-signature"] = signature
    return Delivery(method="POST", headers=headers, body=body, received_at=NOW)


def signature_of(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def messages_of(body: bytes) -> list[Message]:
    return [each.message for each in SOURCE.translate(stored(body))]


def payment_of(body: bytes) -> PaymentReported:
    (message,) = messages_of(body)
    assert isinstance(message, PaymentReported)
    return message


def payout_of(body: bytes) -> PayoutReported:
    (message,) = messages_of(body)
    assert isinstance(message, PayoutReported)
    return message


@pytest.mark.parametrize(
    ("body", "signature"),
    [(PLAIN, PLAIN_SIGNATURE), (NOT_ASCII, NOT_ASCII_SIGNATURE)],
    ids=["ASCII", "not ASCII"],
)
def test_the_published_vectors_are_accepted(body: bytes, signature: str) -> None:
    assert SOURCE.verify(delivery(body, signature)) is None


def test_the_librarys_vector_is_accepted_with_its_newline_and_without_each_as_signed() -> None:
    source = RazorpaySource(RazorpaySettings(webhook_secret=(LIBRARYS_SECRET,)))
    assert len(LIBRARYS) == 971
    bare = LIBRARYS.removesuffix(b"\n")
    assert source.verify(delivery(LIBRARYS, LIBRARYS_SIGNATURE)) is None
    assert source.verify(delivery(bare, LIBRARYS_SIGNATURE_WITHOUT_NEWLINE)) is None
    assert source.verify(delivery(bare, LIBRARYS_SIGNATURE)) is not None
    assert source.verify(delivery(LIBRARYS, LIBRARYS_SIGNATURE_WITHOUT_NEWLINE)) is not None


@pytest.mark.parametrize(
    ("signed", "signature"),
    [
        (
            b"fake_order_id|fake_payment_id",
            "b2335e3b0801106b84a7faff035df56ecffde06918c9ddd1f0fafbb37a51cc89",
        ),
        (
            b"order_TEST0000000001|pay_TEST0000000001",
            "0048b0ee2423cd583f6419636f1f7d0de2b21ab26fe5a29999978ab5a2095054",
        ),
    ],
)
def test_what_a_checkout_brings_back_is_signed_in_the_same_way(
    signed: bytes, signature: str
) -> None:
    given = from_hex(signature)
    assert given is not None
    assert hmac_matches([LIBRARYS_SECRET.encode()], signed, [given], "sha256")
    assert not hmac_matches([LIBRARYS_SECRET.encode()], signed + b" ", [given], "sha256")


def test_a_secret_that_is_being_replaced_is_still_good() -> None:
    assert SOURCE.verify(delivery(PLAIN, signature_of(PLAIN, "the-one-before"))) is None
    assert SOURCE.verify(delivery(PLAIN, signature_of(PLAIN, "yet-another"))) is not None


@pytest.mark.parametrize(
    "signature",
    [None, "", "zz", PLAIN_SIGNATURE.upper(), f"{PLAIN_SIGNATURE},{PLAIN_SIGNATURE}", "é" * 64],
    ids=["missing", "empty", "not hex", "upper case", "twice", "not ASCII"],
)
def test_no_signature_but_the_one_is_believed(signature: str | None) -> None:
    refused = SOURCE.verify(delivery(PLAIN, signature))
    assert refused is not None
    assert refused.reason == "bad-signature"


def test_a_newline_at_the_end_is_signed_too() -> None:
    assert SOURCE.verify(delivery(PLAIN + b"\n", PLAIN_SIGNATURE)) is not None
    assert SOURCE.verify(delivery(PLAIN + b"\n", signature_of(PLAIN + b"\n"))) is None


def test_an_empty_secret_is_none() -> None:
    source = RazorpaySource(RazorpaySettings(webhook_secret=("",)))
    assert source.verify(delivery(PLAIN, signature_of(PLAIN, ""))) is not None


@settings(max_examples=50)
@given(one_byte_off(PLAIN))
def test_a_byte_of_the_body_is_not_to_be_changed(body: bytes) -> None:
    assert SOURCE.verify(delivery(body, PLAIN_SIGNATURE)) is not None


@settings(max_examples=50)
@given(one_character_off(PLAIN_SIGNATURE))
def test_a_byte_of_the_signature_is_not_to_be_changed(signature: str) -> None:
    assert SOURCE.verify(delivery(PLAIN, signature)) is not None


@settings(max_examples=50)
@given(one_byte_off(SECRET.encode()))
def test_a_secret_that_is_a_byte_off_is_another(secret: bytes) -> None:
    signature = hmac.new(secret, PLAIN, hashlib.sha256).hexdigest()
    assert SOURCE.verify(delivery(PLAIN, signature)) is not None


@settings(max_examples=50)
@given(anything(SOURCE.header_names, [PLAIN_SIGNATURE]))
def test_nothing_that_is_sent_raises(sent: Delivery) -> None:
    check_that_nothing_is_raised(SOURCE, sent)


def test_no_secret_is_shown() -> None:
    refused = SOURCE.verify(delivery(PLAIN, "00"))
    assert isinstance(refused, Refused)
    assert SECRET not in refused.detail
    assert SECRET not in repr(SOURCE)


def test_an_event_has_the_id_of_its_header_and_the_type_of_its_body() -> None:
    assert SOURCE.identify(delivery(PLAIN, None, "evt-1")) == Identity("payment.captured", "evt-1")


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"{", b"[]", b'{"event":1}', b'{"event":"\\u0000"}', b'{"event":"\xff"}', DEEP],
)
def test_a_body_that_cannot_be_read_has_no_type(body: bytes) -> None:
    assert SOURCE.identify(delivery(body, None, "evt\n1")) == Identity("", "")


def test_a_paid_order_is_a_payment_of_the_order_with_its_receipt() -> None:
    assert SOURCE.translate(stored(msgspec.json.encode(ORDER_PAID))) == (
        Translated(
            PaymentReported(
                provider="razorpay",
                payment_id="pay_PgQ1x7aB2cD3eF",
                order_number="cf-inv-000123",
                provider_order_id="order_PgQ0w6zA1bC2dE",
                state="captured",
                amount_minor=49900,
                currency="INR",
                method="upi",
                occurred_at=1764547268.0,
            )
        ),
    )


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("created", "created"),
        ("authorized", "authorized"),
        ("captured", "captured"),
        ("refunded", "captured"),
        ("failed", "failed"),
    ],
)
@pytest.mark.parametrize("name", ["payment.authorized", "payment.captured", "payment.failed"])
def test_a_payment_is_as_far_as_its_status_says(name: str, status: str, state: str) -> None:
    body = msgspec.json.encode(event(name, payment={**PAYMENT, "status": status}))
    assert payment_of(body).state == state


@pytest.mark.parametrize(
    ("notes", "number"),
    [
        ({"order_id": "n-1"}, "n-1"),
        ({"order_number": "n-2"}, "n-2"),
        ({"order_id": "", "order_number": 3}, "3"),
        ({"order_id": True}, "cf-inv-000123"),
        ({"order_id": "Please ring twice.\nThanks!", "order_number": " n-4\n"}, "n-4"),
        ({"order_id": "x" * 201}, "cf-inv-000123"),
        ({}, "cf-inv-000123"),
        ([], "cf-inv-000123"),
        (None, "cf-inv-000123"),
    ],
)
def test_notes_name_the_order_before_its_receipt_does(notes: object, number: str) -> None:
    body = changed(ORDER_PAID, ("payload", "payment", "entity", "notes"), notes)
    assert payment_of(body).order_number == number


@pytest.mark.parametrize("receipt", ["a\nb", "x" * 201, "", None, [], {}])
def test_a_receipt_that_can_be_no_number_is_passed_over(receipt: object) -> None:
    body = changed(ORDER_PAID, ("payload", "order", "entity", "receipt"), receipt)
    assert payment_of(body).order_number is None
    assert payment_of(body).provider_order_id == "order_PgQ0w6zA1bC2dE"


@pytest.mark.parametrize("path", [("payload", "order"), ("payload", "order", "entity")])
def test_an_order_may_be_an_empty_list(path: tuple[str, ...]) -> None:
    message = payment_of(changed(ORDER_PAID, path, []))
    assert (message.order_number, message.state) == (None, "captured")


@pytest.mark.parametrize("field", ["method", "error_description"])
def test_what_only_describes_a_payment_may_be_of_any_kind(field: str) -> None:
    message = payment_of(changed(CAPTURED, ("payload", "payment", "entity", field), []))
    assert (message.state, message.reason) == ("captured", "")


def test_a_payment_without_an_order_names_none() -> None:
    message = payment_of(changed(CAPTURED, ("payload", "payment", "entity", "order_id"), None))
    assert message.order_number is None
    assert message.provider_order_id is None


def test_a_failed_payment_says_why() -> None:
    failed = {**PAYMENT, "status": "failed", "error_description": "Payment\0failed " + "x" * 3000}
    message = payment_of(msgspec.json.encode(event("payment.failed", payment=failed)))
    assert message.reason.startswith("Paymentfailed xxx")
    assert len(message.reason) == 2_000


def test_the_time_is_the_events_else_the_payments_else_that_of_arrival() -> None:
    assert payment_of(msgspec.json.encode(CAPTURED)).occurred_at == 1764547268.0
    without_its_own = {**CAPTURED, "created_at": None}
    assert payment_of(msgspec.json.encode(without_its_own)).occurred_at == 1764547265.0
    neither = without(without_its_own, ("payload", "payment", "entity", "created_at"))
    assert payment_of(neither).occurred_at == NOW


def test_a_refund_is_as_far_as_its_status_says() -> None:
    body = msgspec.json.encode(event("refund.created", refund=REFUND, payment=PAYMENT))
    assert messages_of(body) == [
        RefundReported(
            provider="razorpay",
            refund_id="rfnd_PgR0000000000A",
            payment_id="pay_PgQ1x7aB2cD3eF",
            state="processed",
            amount_minor=10000,
            currency="INR",
            occurred_at=1764547268.0,
        )
    ]


def test_a_payout_says_how_far_it_is_and_why() -> None:
    assert messages_of(msgspec.json.encode(PAID_OUT)) == [
        PayoutReported(
            provider="razorpay",
            payout_id="pout_PhA7b8C9d0E1f2",
            state="processed",
            reference_id="cb-2025-11-000042",
            amount_minor=25000,
            currency="INR",
            utr="533412345678",
            reason="payout_processed",
            occurred_at=1764547268.0,
        )
    ]


@pytest.mark.parametrize("utr", [None, "null", ""])
def test_a_payout_may_have_no_number_of_the_bank(utr: str | None) -> None:
    assert payout_of(changed(PAID_OUT, ("payload", "payout", "entity", "utr"), utr)).utr is None


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (None, ""),
        ([], ""),
        ({}, ""),
        ({"reason": None, "description": "Credited"}, "Credited"),
        ({"reason": [], "description": "Credited"}, "Credited"),
    ],
)
def test_a_payout_may_have_no_reference_and_no_details(details: object, reason: str) -> None:
    payout = {**PAYOUT, "reference_id": None, "status_details": details}
    message = payout_of(msgspec.json.encode(event("payout.reversed", payout=payout)))
    assert (message.reference_id, message.reason, message.state) == (None, reason, "processed")


@pytest.mark.parametrize(
    "name",
    [
        "payment.downtime.started",
        "payout.downtime.resolved",
        "payment.dispute.created",
        "fund_account.validation.completed",
        "never.heard.of",
    ],
)
def test_what_does_not_concern_us_is_followed_by_nothing(name: str) -> None:
    assert messages_of(msgspec.json.encode(event(name, other={"id": 1}))) == []


@pytest.mark.parametrize(
    ("right", "entity", "field"),
    [
        *((CAPTURED, "payment", field) for field in ("id", "amount", "currency", "status")),
        *((REFUNDED, "refund", field) for field in ("id", "amount", "payment_id", "status")),
        *((PAID_OUT, "payout", field) for field in ("id", "amount", "currency", "status")),
    ],
)
def test_an_event_that_lacks_what_it_must_have_names_the_field(
    right: object, entity: str, field: str
) -> None:
    path = ("payload", entity, "entity", field)
    assert_unreadable(SOURCE, without(right, path), saying=rf"{field}.*\$\.payload\.{entity}")


@pytest.mark.parametrize(
    ("field", "value", "saying"),
    [
        ("amount", "49900", r"\$\.payload\.payment\.entity\.amount"),
        ("amount", -1, "amount_minor"),
        ("status", "vanished", r"\$\.payload\.payment\.entity\.status"),
        ("currency", "rupees", "currency"),
        ("id", "x" * 201, "payment_id"),
        ("order_id", "a\nb", "provider_order_id"),
    ],
)
def test_a_value_that_no_message_can_hold_is_named(field: str, value: object, saying: str) -> None:
    path = ("payload", "payment", "entity", field)
    assert_unreadable(SOURCE, changed(CAPTURED, path, value), saying=saying)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", NOT_ASCII, b'{"event":"\xff"}', DEEP])
def test_what_is_no_event_at_all_is_unreadable(body: bytes) -> None:
    assert_unreadable(SOURCE, body)


@settings(max_examples=50)
@given(st.sampled_from([ORDER_PAID, REFUNDED, PAID_OUT]).flatmap(one_value_off))
def test_an_event_with_anything_in_it_gives_good_messages_or_none(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)
