import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.config_sources import StripeSettings
from couponflow.messages import Message, PaymentReported, RefundReported
from couponflow.webhooks.contract import Delivery, Identity, Refused, Translated
from couponflow.webhooks.sources.stripe import StripeSource
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

SECRET = "whsec_test_secret"
SOURCE = StripeSource(StripeSettings(webhook_secret=(SECRET, "whsec_the_one_before")))

BODY = b'{"id":"evt_test_1","object":"event","type":"payment_intent.succeeded"}'
SIGNED_AT = 1_700_000_000
SIGNATURE = "871acfe933554b446cc41d791076dd56a10c0553cc61aafbeb881d0082b45043"
HEADER = f"t={SIGNED_AT},v1={SIGNATURE}"
# From the tests of Stripe's library, and computed with it.
LIBRARYS = b"""{
  "id": "evt_test_webhook",
  "object": "event",
  "data": { "object": { "id": "rdr_123", "object": "terminal.reader" } }
}"""
LIBRARYS_SIGNATURE = "3bfab77baf5f7b6991a46c9b53b6547d7afc56148b10468fcad9f35c1992ffbd"

INTENT = {
    "id": "pi_3QxTest0000000000000001",
    "object": "payment_intent",
    "amount": 49900,
    "amount_capturable": 0,
    "amount_received": 49900,
    "currency": "inr",
    "created": 1764547250,
    "last_payment_error": None,
    "metadata": {"order_id": "cf-000123"},
    "status": "succeeded",
}
SESSION = {
    "id": "cs_test_1",
    "object": "checkout.session",
    "amount_total": 49900,
    "client_reference_id": "cf-000124",
    "currency": "inr",
    "created": 1764547200,
    "metadata": {},
    "payment_intent": "pi_3QxTest0000000000000001",
    "payment_status": "paid",
    "status": "complete",
}
REFUND = {
    "id": "re_1",
    "object": "refund",
    "amount": 10000,
    "charge": "ch_1",
    "currency": "inr",
    "created": 1764547280,
    "payment_intent": "pi_3QxTest0000000000000001",
    "status": "succeeded",
}


def event(event_type: str, about: object) -> dict[str, object]:
    return {
        "id": "evt_3QxTest0000000000000001",
        "object": "event",
        "created": 1764547300,
        "type": event_type,
        "data": {"object": about},
    }


SUCCEEDED = event("payment_intent.succeeded", INTENT)
COMPLETED = event("checkout.session.completed", SESSION)
REFUND_UPDATED = event("refund.updated", REFUND)
CHARGE_REFUNDED = event("charge.refunded", {"id": "ch_1", "refunds": {"data": [REFUND]}})


def delivery(body: bytes, header: str | None, received_at: float = SIGNED_AT) -> Delivery:
    headers = {} if header is None else {"stripe-signature": header}
    return Delivery(method="POST", headers=headers, body=body, received_at=received_at)


def signature_of(body: bytes, secret: str = SECRET, signed_at: int = SIGNED_AT) -> str:
    return hmac.new(secret.encode(), b"%d." % signed_at + body, hashlib.sha256).hexdigest()


def messages_of(body: bytes) -> list[Message]:
    return [each.message for each in SOURCE.translate(stored(body))]


def payment_of(body: bytes) -> PaymentReported:
    (message,) = messages_of(body)
    assert isinstance(message, PaymentReported)
    return message


def reason_of_refusal(header: str | None, received_at: float = SIGNED_AT) -> str | None:
    refused = SOURCE.verify(delivery(BODY, header, received_at))
    return refused.reason if refused else None


def test_the_published_vector_is_accepted() -> None:
    assert SOURCE.verify(delivery(BODY, HEADER)) is None


def test_the_librarys_vector_is_accepted() -> None:
    assert len(LIBRARYS) == 125
    header = f"t={SIGNED_AT},v1={LIBRARYS_SIGNATURE}"
    assert SOURCE.verify(delivery(LIBRARYS, header)) is None
    assert SOURCE.verify(delivery(LIBRARYS + b"\n", header)) is not None


def test_the_published_vector_with_other_schemes_is_accepted() -> None:
    header = f"t={SIGNED_AT},v1=bad,v1={SIGNATURE},v0=zzz"
    assert SOURCE.verify(delivery(BODY, header)) is None


def test_while_a_secret_is_rolled_either_signature_will_do() -> None:
    older = signature_of(BODY, "whsec_the_one_before")
    other = signature_of(BODY, "whsec_yet_another")
    assert reason_of_refusal(f"t={SIGNED_AT},v1={older}") is None
    assert reason_of_refusal(f"t={SIGNED_AT},v1={other},v1={older}") is None
    assert reason_of_refusal(f"t={SIGNED_AT},v1={other}") == "bad-signature"


def test_an_empty_secret_is_none() -> None:
    source = StripeSource(StripeSettings(webhook_secret=("",)))
    header = f"t={SIGNED_AT},v1={signature_of(BODY, '')}"
    assert source.verify(delivery(BODY, header)) is not None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"v1={SIGNATURE}",
        f"t={SIGNED_AT}",
        f"t={SIGNED_AT},v0={SIGNATURE}",
        f"t={SIGNED_AT},v1={SIGNATURE.upper()}",
        f"t={SIGNED_AT},t={SIGNED_AT},v1={SIGNATURE}",
        f"t=,v1={SIGNATURE}",
        f"t=-1,v1={SIGNATURE}",
        f"t=\u0661\u0667,v1={SIGNATURE}",
        f"t={'1' * 5000},v1={SIGNATURE}",
        f"t={SIGNED_AT}; v1={SIGNATURE}",
    ],
)
def test_a_header_that_is_not_one_time_and_its_signatures_is_refused(header: str | None) -> None:
    assert reason_of_refusal(header) == "bad-signature"


@pytest.mark.parametrize(
    ("received_at", "reason"),
    [
        (SIGNED_AT + 300, None),
        (SIGNED_AT + 301, "stale"),
        (SIGNED_AT - 300, None),
        (SIGNED_AT - 301, "stale"),
    ],
)
def test_what_was_signed_long_ago_or_lies_ahead_is_stale(
    received_at: float, reason: str | None
) -> None:
    assert reason_of_refusal(HEADER, received_at) == reason


def test_a_tolerance_of_0_does_not_look_at_the_time() -> None:
    source = StripeSource(StripeSettings(webhook_secret=(SECRET,), tolerance_seconds=0))
    assert source.verify(delivery(BODY, HEADER, received_at=0)) is None


def test_a_wrong_signature_is_never_called_stale() -> None:
    assert reason_of_refusal(f"t={SIGNED_AT},v1={'0' * 64}", NOW + 10**6) == "bad-signature"


@settings(max_examples=50)
@given(one_byte_off(BODY))
def test_a_byte_of_the_body_is_not_to_be_changed(body: bytes) -> None:
    assert SOURCE.verify(delivery(body, HEADER)) is not None


@settings(max_examples=100)
@given(one_character_off(HEADER))
def test_a_byte_of_the_header_is_not_to_be_changed(header: str) -> None:
    assert reason_of_refusal(header) == "bad-signature"


@settings(max_examples=50)
@given(one_byte_off(SECRET.encode()))
def test_a_secret_that_is_a_byte_off_is_another(secret: bytes) -> None:
    signature = hmac.new(secret, b"%d." % SIGNED_AT + BODY, hashlib.sha256).hexdigest()
    assert reason_of_refusal(f"t={SIGNED_AT},v1={signature}") == "bad-signature"


@settings(max_examples=50)
@given(anything(SOURCE.header_names, [HEADER]))
def test_nothing_that_is_sent_raises(sent: Delivery) -> None:
    check_that_nothing_is_raised(SOURCE, sent)


def test_no_secret_is_shown() -> None:
    refused = SOURCE.verify(delivery(BODY, f"t={SIGNED_AT},v1=00"))
    assert isinstance(refused, Refused)
    assert SECRET not in refused.detail
    assert SECRET not in repr(SOURCE)


def test_an_event_has_the_id_and_the_type_of_its_body() -> None:
    named = SOURCE.identify(delivery(BODY, None))
    assert named == Identity("payment_intent.succeeded", "evt_test_1")


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"id":1}', b'{"type":"\\n"}', DEEP])
def test_a_body_that_cannot_be_read_has_no_name(body: bytes) -> None:
    assert SOURCE.identify(delivery(body, None)) == Identity("", "")


def test_a_payment_that_succeeded_is_captured() -> None:
    assert SOURCE.translate(stored(msgspec.json.encode(SUCCEEDED))) == [
        Translated(
            PaymentReported(
                provider="stripe",
                payment_id="pi_3QxTest0000000000000001",
                order_number="cf-000123",
                state="captured",
                amount_minor=49900,
                currency="INR",
                occurred_at=1764547300.0,
            )
        )
    ]


@pytest.mark.parametrize(
    ("name", "status", "state"),
    [
        ("created", "requires_payment_method", "created"),
        ("processing", "processing", "created"),
        ("requires_action", "requires_action", "created"),
        ("partially_funded", "requires_action", "created"),
        ("amount_capturable_updated", "requires_capture", "authorized"),
        ("succeeded", "succeeded", "captured"),
        ("payment_failed", "requires_payment_method", "failed"),
        ("canceled", "canceled", "failed"),
    ],
)
def test_a_payment_is_as_far_as_event_and_status_say(name: str, status: str, state: str) -> None:
    body = msgspec.json.encode(event(f"payment_intent.{name}", {**INTENT, "status": status}))
    assert payment_of(body).state == state


def test_what_was_received_is_what_was_captured() -> None:
    some = {**INTENT, "amount_received": 20000}
    assert payment_of(
        msgspec.json.encode(event("payment_intent.succeeded", some))
    ).amount_minor == (20000)
    none = {**INTENT, "amount_received": 0, "status": "requires_capture"}
    waiting = event("payment_intent.amount_capturable_updated", none)
    assert payment_of(msgspec.json.encode(waiting)).amount_minor == 49900


def test_only_a_payment_that_failed_says_why() -> None:
    refused = {
        **INTENT,
        "status": "requires_payment_method",
        "last_payment_error": {"code": "card_declined", "message": "Your card was declined."},
    }
    failed = msgspec.json.encode(event("payment_intent.payment_failed", refused))
    again = msgspec.json.encode(event("payment_intent.created", refused))
    assert payment_of(failed).reason == "Your card was declined."
    assert payment_of(again).reason == ""


def test_a_payment_that_was_called_off_says_why() -> None:
    called_off = {**INTENT, "status": "canceled", "cancellation_reason": "abandoned"}
    (message,) = messages_of(msgspec.json.encode(event("payment_intent.canceled", called_off)))
    assert isinstance(message, PaymentReported)
    assert (message.state, message.reason) == ("failed", "abandoned")


@pytest.mark.parametrize(
    ("error", "reason"), [(None, ""), ([], ""), ({}, ""), ({"code": 1, "message": {}}, "1")]
)
def test_why_it_failed_may_be_of_any_kind(error: object, reason: str) -> None:
    failed = {**INTENT, "status": "requires_payment_method", "last_payment_error": error}
    message = payment_of(msgspec.json.encode(event("payment_intent.payment_failed", failed)))
    assert (message.state, message.reason) == ("failed", reason)


@pytest.mark.parametrize("number", ["Please ring twice.\nThanks!", "x" * 501, "", [], None])
def test_metadata_that_can_be_no_number_is_passed_over(number: object) -> None:
    metadata = {"order_id": number}
    intent = changed(SUCCEEDED, ("data", "object", "metadata"), metadata)
    assert (payment_of(intent).state, payment_of(intent).order_number) == ("captured", None)
    session = changed(COMPLETED, ("data", "object", "metadata"), metadata)
    assert payment_of(session).order_number == "cf-000124"


@pytest.mark.parametrize("reference", ["a\nb", "x" * 201, "", [], None])
def test_a_reference_that_can_be_no_number_is_passed_over(reference: object) -> None:
    message = payment_of(changed(COMPLETED, ("data", "object", "client_reference_id"), reference))
    assert (message.order_number, message.provider_order_id) == (None, "cs_test_1")


def test_a_paid_session_is_a_captured_payment() -> None:
    assert messages_of(msgspec.json.encode(COMPLETED)) == [
        PaymentReported(
            provider="stripe",
            payment_id="pi_3QxTest0000000000000001",
            order_number="cf-000124",
            provider_order_id="cs_test_1",
            state="captured",
            amount_minor=49900,
            currency="INR",
            occurred_at=1764547300.0,
        )
    ]


def test_a_sessions_metadata_names_the_order_before_its_reference_does() -> None:
    body = changed(COMPLETED, ("data", "object", "metadata"), {"order_number": "cf-000125"})
    assert payment_of(body).order_number == "cf-000125"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("payment_status", "unpaid"),
        ("payment_status", "no_payment_required"),
        ("payment_intent", None),
    ],
)
def test_a_session_without_a_payment_is_followed_by_nothing(field: str, value: object) -> None:
    assert messages_of(changed(COMPLETED, ("data", "object", field), value)) == []


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("pending", "pending"),
        ("requires_action", "pending"),
        ("succeeded", "processed"),
        ("failed", "failed"),
        ("canceled", "failed"),
        (None, "pending"),
    ],
)
def test_a_refund_is_as_far_as_its_status_says(status: str | None, state: str) -> None:
    (message,) = messages_of(changed(REFUND_UPDATED, ("data", "object", "status"), status))
    assert isinstance(message, RefundReported)
    assert message.state == state


def test_a_refunded_charge_tells_of_each_refund_it_holds() -> None:
    second = {**REFUND, "id": "re_2", "payment_intent": None}
    body = changed(CHARGE_REFUNDED, ("data", "object", "refunds"), {"data": [REFUND, second]})
    first = RefundReported(
        provider="stripe",
        refund_id="re_1",
        payment_id="pi_3QxTest0000000000000001",
        state="processed",
        amount_minor=10000,
        currency="INR",
        occurred_at=1764547300.0,
    )
    other = msgspec.structs.replace(first, refund_id="re_2", payment_id="ch_1")
    assert messages_of(body) == [first, other]


def test_a_refund_whose_status_is_not_known_hides_no_other() -> None:
    unknown = {**REFUND, "id": "re_2", "status": None}
    refunds = {"data": [unknown, REFUND]}
    told = messages_of(changed(CHARGE_REFUNDED, ("data", "object", "refunds"), refunds))
    states = {each.refund_id: each.state for each in told if isinstance(each, RefundReported)}
    assert states == {"re_1": "processed", "re_2": "pending"}


def test_a_refunded_charge_of_a_newer_version_holds_no_refunds() -> None:
    assert messages_of(without(CHARGE_REFUNDED, ("data", "object", "refunds"))) == []


@pytest.mark.parametrize("event_type", ["charge.succeeded", "invoice.paid", "never.heard.of"])
def test_what_does_not_concern_us_is_followed_by_nothing(event_type: str) -> None:
    assert messages_of(msgspec.json.encode(event(event_type, []))) == []


def test_a_thin_event_is_followed_by_nothing() -> None:
    body = b'{"id":"evt_2","object":"v2.core.event","type":"payment_intent.succeeded"}'
    assert messages_of(body) == []


@pytest.mark.parametrize(
    ("right", "field"),
    [
        *((SUCCEEDED, field) for field in ("id", "amount", "amount_received", "currency")),
        *((SUCCEEDED, field) for field in ("status",)),
        *((COMPLETED, field) for field in ("id", "amount_total", "currency", "payment_status")),
        *((REFUND_UPDATED, field) for field in ("id", "amount", "currency", "status")),
    ],
)
def test_an_event_that_lacks_what_it_must_have_names_the_field(right: object, field: str) -> None:
    body = without(right, ("data", "object", field))
    assert_unreadable(SOURCE, body, saying=rf"{field}.*\$\.data\.object")


def test_a_refund_of_nothing_is_unreadable() -> None:
    refund = {**REFUND, "payment_intent": None, "charge": None}
    body = msgspec.json.encode(event("refund.created", refund))
    assert_unreadable(SOURCE, body, saying="`payment_intent`")


@pytest.mark.parametrize(
    ("field", "value", "saying"),
    [
        ("amount_received", -1, "amount_minor"),
        ("status", "vanished", r"\$\.data\.object\.status"),
        ("currency", "rupees", "currency"),
        ("id", "", "payment_id"),
    ],
)
def test_a_value_that_no_message_can_hold_is_named(field: str, value: object, saying: str) -> None:
    assert_unreadable(SOURCE, changed(SUCCEEDED, ("data", "object", field), value), saying=saying)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", BODY, b'{"type":"\xff"}', DEEP])
def test_what_is_no_event_at_all_is_unreadable(body: bytes) -> None:
    assert_unreadable(SOURCE, body)


@settings(max_examples=50)
@given(
    st.sampled_from([SUCCEEDED, COMPLETED, REFUND_UPDATED, CHARGE_REFUNDED]).flatmap(one_value_off)
)
def test_an_event_with_anything_in_it_gives_good_messages_or_none(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)
