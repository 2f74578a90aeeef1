import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.webhooks.redaction import (
    REDACTED,
    is_private,
    redact_body,
    redact_headers,
    redact_query,
    redact_text,
)

RAZORPAY = b"""{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_1",
"amount":1.10,"method":"upi","vpa":"asha@exampleupi","email":"asha@example.com","contact":"+919812345678",
"card":{"last4":"1111","network":"Visa","name":"Asha"},"notes":{"gift_for":"asha@example.com"},
"order_id":"order_1","tax":180,"captured":true,"token_id":null}}}}"""


@pytest.mark.parametrize(
    "name",
    [
        *("email", "receipt_email", "contact", "phone", "phonenumber", "mobile", "mobiles"),
        *("number", "telNum", "vpa", "name", "firstName", "customer_name", "card", "last4"),
        *("ip", "click_user_ip", "userIP", "ip_address", "token", "access_token", "secret", "key"),
        *("x-api-key", "apikey", "Upstash-Signature", "address1", "useragent", "user_agent"),
        *("userAgent", "zip", "zipCode", "pincode", "signed_by", "otp", "authorization", "to"),
        *("X-Forwarded-For", "password", "contact[email]", "account_number", "ifsc"),
    ],
)
def test_what_is_called_so_is_private(name: str) -> None:
    assert is_private(name)


@pytest.mark.parametrize(
    "name",
    [
        *("id", "event", "order_number", "tracking_code", "status", "shipping", "offer_name"),
        *("courier_name", "advertiserName", "description", "amount", "skip", "payment_method"),
        *("content-type", "sg_message_id", "keyword", "subid", "company", "", "\N{RUPEE SIGN}"),
    ],
)
def test_what_is_called_so_is_nobody_s(name: str) -> None:
    assert not is_private(name)


def test_json_is_redacted_at_any_depth_and_is_else_what_it_was() -> None:
    shown = redact_body(RAZORPAY)
    assert shown.form == "json"
    assert '"amount":1.10' in shown.text
    assert msgspec.json.decode(shown.text)["payload"]["payment"]["entity"] == {
        "id": "pay_1",
        "amount": 1.10,
        "method": "upi",
        "vpa": REDACTED,
        "email": REDACTED,
        "contact": REDACTED,
        "card": {"last4": REDACTED, "network": REDACTED, "name": REDACTED},
        "notes": {"gift_for": "a***@example.com"},
        "order_id": "order_1",
        "tax": 180,
        "captured": True,
        "token_id": None,
    }


def test_a_list_of_events_is_redacted() -> None:
    body = b'[{"email":"a@b.example","event":"open","useragent":"x","smtp-id":"<1@x>"}]'
    (shown,) = msgspec.json.decode(redact_body(body).text)
    assert (shown["email"], shown["useragent"], shown["event"]) == (REDACTED, REDACTED, "open")


def test_a_form_is_redacted_and_the_json_in_it() -> None:
    body = (
        b"event=paid&customer%5Bname%5D=Asha&amount=1%2C5"
        b"&data=%5B%7B%22report%22%3A%5B%7B%22number%22%3A%22919812345678%22%2C%22status%22%3A1%7D%5D%7D%5D"
    )
    shown = redact_body(body)
    assert shown.form == "form"
    assert shown.text == (
        "event=paid&customer%5Bname%5D=[redacted]&amount=1%2C5"
        '&data=[{"report":[{"number":"[redacted]","status":1}]}]'
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"email":"asha@example.com","amou',
        b"Dear Asha",
        b"<email>asha@example.com</email>",
        b"\xff\xfe",
        b'{"a":' * 5_000,
        b"[" * 5_000 + b"]" * 5_000,
        b"--x\r\nContent-Disposition: form-data; name=email\r\n\r\nasha@example.com",
    ],
)
def test_what_cannot_be_taken_apart_is_hidden(body: bytes) -> None:
    shown = redact_body(body)
    assert (shown.text, shown.form) == ("", "hidden")


def test_an_empty_body_is_shown_as_it_is() -> None:
    assert redact_body(b"").form == "text"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", ""),
        ("status=ok&subid=1%2F2&flag", "status=ok&subid=1%2F2&flag"),
        ("secret=s3&SECRET=&user_ip=192.0.2.1", "secret=[redacted]&SECRET=&user_ip=[redacted]"),
        ("who=asha%40example.com", "who=a***@example.com"),
        ("asha%40example.com", "a***@example.com"),
        (
            "back=https%3A%2F%2Fx.example%2F%3Femail%3Dasha%40example.com",
            "back=https://x.example/%3Femail%3D[redacted]",
        ),
        ("%65mail=asha", "%65mail=[redacted]"),
        ("a=%ff", "a=%ff"),
    ],
)
def test_a_query_is_redacted(query: str, shown: str) -> None:
    assert redact_query(query) == shown


def test_headers_are_redacted() -> None:
    headers = {
        "x-api-key": "s3",
        "content-type": "text/plain; charset=utf-8",
        "x-who": "a@b.example",
    }
    assert redact_headers(headers) == {
        "x-api-key": REDACTED,
        "content-type": "text/plain; charset=utf-8",
        "x-who": "a***@b.example",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("call +919812345678 or asha@example.com", "call +91***5678 or a***@example.com"),
        ("GET https://x.example/?token=s3&a=1", "GET https://x.example/?token=[redacted]&a=1"),
        ('{"to":"asha"}', '{"to":"[redacted]"}'),
        ('{"to":"asha"', REDACTED),
        ("[info] all is well", "[info] all is well"),
    ],
)
def test_free_text_is_redacted(text: str, shown: str) -> None:
    assert redact_text(text) == shown


@pytest.mark.parametrize("name", ["desc", "description", "failedReason", "error_reason", "DESC"])
def test_a_remark_is_shown_without_telephone_numbers(name: str) -> None:
    remark = "to 919812345678, 98123 45678 or +91-98123-45678 at 2025-12-01 10:06:20: error 000600"
    shown = "to [redacted], [redacted] or +91***5678 at 2025-12-01 10:06:20: error 000600"
    body = msgspec.json.encode({"report": [{name: remark, "id": "919812345678"}]})
    assert msgspec.json.decode(redact_body(body).text) == {
        "report": [{name: shown, "id": "919812345678"}]
    }
    assert redact_query(f"{name}=to+919812345678&id=919812345678") == (
        f"{name}=to [redacted]&id=919812345678"
    )


@pytest.mark.parametrize("number", ["2025-12-345678", "20-2512-0198", "+919198-12-345678"])
def test_what_only_begins_as_a_day_may_be_a_telephone_number(number: str) -> None:
    assert "345678" not in redact_body(msgspec.json.encode({"desc": number})).text
    assert "0198" not in redact_body(msgspec.json.encode({"desc": number})).text


def test_several_remarks_are_shown_without_telephone_numbers() -> None:
    body = b'{"reasons":["call 9812345678",{"code":"9812345678"}],"description":null}'
    assert redact_body(body).text == (
        '{"reasons":["call [redacted]",{"code":"9812345678"}],"description":null}'
    )


NESTED = st.recursive(
    st.just("s3cret-value"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | inner.map(lambda value: msgspec.json.encode({"token": value}).decode())
    ),
    max_leaves=10,
)


@given(NESTED)
def test_nothing_under_a_private_name_is_shown(value: object) -> None:
    body = msgspec.json.encode({"deep": [{"email": value}]})
    assert "s3cret" not in redact_body(body).text


@given(st.binary() | st.text().map(str.encode))
def test_any_body_can_be_shown(body: bytes) -> None:
    shown = redact_body(body)
    assert (shown.form == "hidden") <= (shown.text == "")
