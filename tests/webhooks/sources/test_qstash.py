import base64
import hashlib
import hmac

import jwt
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.config_sources import QstashSettings
from couponflow.messages import (
    AuditReported,
    CheckoutRequested,
    EmailRequested,
    FailureReported,
    Message,
    MetricReported,
    OrderCreated,
    OrderItem,
    StockReported,
)
from couponflow.webhooks.contract import Delivery, Identity, Refused, Translated
from couponflow.webhooks.sources.qstash import QstashSource
from tests.webhooks.sources.mutations import (
    DEEP,
    NOW,
    anything,
    assert_unreadable,
    check_that_messages_fit_or_the_event_is_unreadable,
    check_that_nothing_is_raised,
    one_byte_off,
    one_character_off,
    one_value_off,
    stored,
)

KEY = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
NEXT_KEY = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
URL = "https://shop.example/hooks/qstash"
SOURCE = QstashSource(
    QstashSettings(
        current_signing_key=KEY,
        next_signing_key=NEXT_KEY,
        destination_urls=("https://old.example/api/webhook", URL),
    )
)

BODY = b'{"hello":"world"}'
BODY_CLAIM = "k6I5cakU5erL8KjSUVTNownDwccvu5kU1Hxg88toFYg="
TOKEN = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJVcHN0YXNoIiwic3ViIjoiaHR0cHM6Ly9zaG9wLmV4YW1w"
    "bGUvaG9va3MvcXN0YXNoIiwiZXhwIjoxNzAwMDAwMzAwLCJuYmYiOjE3MDAwMDAwMDAsImlhdCI6MTcwMDAwMDAwMCwi"
    "anRpIjoiand0X3Rlc3RfMSIsImJvZHkiOiJrNkk1Y2FrVTVlckw4S2pTVVZUTm93bkR3Y2N2dTVrVTFIeGc4OHRvRlln"
    "PSJ9.GIo_xLoZ9ziM3TjNNXUi4dab75BO6tf5m5Pr2LgI0M4"
)
CLAIMS: dict[str, object] = {
    "iss": "Upstash",
    "sub": URL,
    "exp": 1_700_000_300,
    "nbf": 1_700_000_000,
    "iat": 1_700_000_000,
    "jti": "jwt_test_1",
    "body": BODY_CLAIM,
}
USER_ID = "0199e0f2-0000-7000-8000-000000000004"


def delivery(token: str | None, body: bytes = BODY, received_at: float = NOW) -> Delivery:
    headers = {"upstash-message-id": "msg_1"}
    if token is not None:
        headers["upstash-signature"] = token
    return Delivery(method="POST", headers=headers, body=body, received_at=received_at)


def token_of(claims: object, key: str = KEY, header: object = None) -> str:
    parts = [
        base64.urlsafe_b64encode(msgspec.json.encode(part)).rstrip(b"=")
        for part in (header or {"alg": "HS256", "typ": "JWT"}, claims)
    ]
    signed = b".".join(parts)
    signature = hmac.digest(key.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def reason_of_refusal(
    token: str | None, body: bytes = BODY, received_at: float = NOW
) -> str | None:
    refused = SOURCE.verify(delivery(token, body, received_at))
    return refused.reason if refused else None


def published(event_type: str, data: object, **envelope: object) -> bytes:
    return msgspec.json.encode({"eventType": event_type, "data": data, **envelope})


def message_of(body: bytes) -> Message:
    (translated,) = SOURCE.translate(stored(body))
    return translated.message


def test_the_published_vector_is_accepted() -> None:
    assert SOURCE.verify(delivery(TOKEN)) is None


@pytest.mark.parametrize(
    ("received_at", "reason"),
    [
        (1_700_000_304.9, None),
        (1_700_000_305, "stale"),
        (1_699_999_995, None),
        (1_699_999_994.9, "stale"),
    ],
)
def test_a_token_is_good_for_its_life_and_the_leeway(
    received_at: float, reason: str | None
) -> None:
    assert reason_of_refusal(TOKEN, received_at=received_at) == reason


def test_the_leeway_can_be_nothing() -> None:
    source = QstashSource(QstashSettings(current_signing_key=KEY, leeway_seconds=0))
    assert source.verify(delivery(TOKEN, received_at=1_700_000_000)) is None
    assert source.verify(delivery(TOKEN, received_at=1_700_000_300)) is not None


def test_the_next_key_is_good_already() -> None:
    assert reason_of_refusal(token_of(CLAIMS, NEXT_KEY)) is None
    assert (
        reason_of_refusal(token_of(CLAIMS, "sig_of_somebody_else_entirely_000")) == "bad-signature"
    )


def test_an_empty_key_is_none() -> None:
    source = QstashSource(QstashSettings(current_signing_key=KEY))
    assert source.verify(delivery(token_of(CLAIMS, ""))) is not None


def test_a_short_key_will_do() -> None:
    source = QstashSource(QstashSettings(current_signing_key="short"))
    assert source.verify(delivery(token_of(CLAIMS, "short"))) is None


@pytest.mark.parametrize("claim", [BODY_CLAIM, BODY_CLAIM.rstrip("=")])
def test_the_hash_of_the_body_may_lack_its_padding(claim: str) -> None:
    assert reason_of_refusal(token_of({**CLAIMS, "body": claim})) is None


def test_an_empty_body_has_a_hash_too() -> None:
    claim = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="
    assert reason_of_refusal(token_of({**CLAIMS, "body": claim}), body=b"") is None


def test_a_token_for_another_destination_is_refused_where_ours_are_known() -> None:
    elsewhere = token_of({**CLAIMS, "sub": "https://shop.example/hooks/other"})
    assert reason_of_refusal(elsewhere) == "bad-signature"
    anywhere = QstashSource(QstashSettings(current_signing_key=KEY))
    assert anywhere.verify(delivery(elsewhere)) is None


@pytest.mark.parametrize("claim", ["iss", "sub", "exp", "nbf", "body"])
@pytest.mark.parametrize("value", ["missing", None, True, "other", [1]], ids=str)
def test_a_claim_that_is_missing_or_something_else_is_refused(claim: str, value: object) -> None:
    claims = {**CLAIMS, claim: value}
    if value == "missing":
        del claims[claim]
    assert reason_of_refusal(token_of(claims)) == "bad-signature"


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS512"},
        {"alg": "hs256"},
        {},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "crit": ["x"]},
        [],
    ],
    ids=str,
)
def test_no_algorithm_but_one_is_believed(header: object) -> None:
    assert reason_of_refusal(token_of(CLAIMS, header=header or {"typ": "JWT"})) == "bad-signature"


def test_an_honest_token_of_another_algorithm_is_refused() -> None:
    token = jwt.encode(CLAIMS, KEY * 2, algorithm="HS512")
    source = QstashSource(QstashSettings(current_signing_key=KEY * 2))
    assert source.verify(delivery(token)) is not None


@pytest.mark.parametrize(
    "token",
    [None, "", ".", "..", "a.b", "a.b.c.d", f"{TOKEN},{TOKEN}", f" {TOKEN}", TOKEN + "é", "\ud800"],
    ids=ascii,
)
def test_what_is_no_token_is_refused(token: str | None) -> None:
    assert reason_of_refusal(token) == "bad-signature"


@settings(max_examples=50)
@given(one_byte_off(BODY))
def test_a_byte_of_the_body_is_not_to_be_changed(body: bytes) -> None:
    assert reason_of_refusal(TOKEN, body=body) == "bad-signature"


@settings(max_examples=100)
@given(one_character_off(TOKEN))
def test_a_byte_of_the_token_is_not_to_be_changed(token: str) -> None:
    assert reason_of_refusal(token) == "bad-signature"


def test_the_spare_bits_of_the_signature_are_not_to_be_changed() -> None:
    assert TOKEN.endswith("4")
    assert reason_of_refusal(TOKEN[:-1] + "5") == "bad-signature"


@settings(max_examples=50)
@given(one_byte_off(KEY.encode()))
def test_a_key_that_is_a_byte_off_is_another(key: bytes) -> None:
    assert reason_of_refusal(token_of(CLAIMS, key.decode("latin-1"))) == "bad-signature"


@settings(max_examples=50)
@given(anything(SOURCE.header_names, [TOKEN]))
def test_nothing_that_is_sent_raises(sent: Delivery) -> None:
    check_that_nothing_is_raised(SOURCE, sent)


@settings(max_examples=50)
@given(one_value_off(CLAIMS))
def test_no_claims_raise(claims: bytes) -> None:
    refused = SOURCE.verify(delivery(token_of(msgspec.Raw(claims))))
    assert refused is None or refused.reason in ("bad-signature", "stale")


def test_no_key_is_shown() -> None:
    refused = SOURCE.verify(delivery("a.b.c"))
    assert isinstance(refused, Refused)
    assert KEY not in refused.detail
    assert KEY not in repr(SOURCE)


@pytest.mark.parametrize("name", ["eventType", "type"])
def test_a_message_has_the_id_of_its_header_and_the_type_of_its_body(name: str) -> None:
    named = SOURCE.identify(delivery(None, msgspec.json.encode({name: "order.created"})))
    assert named == Identity("order.created", "msg_1")


@pytest.mark.parametrize(
    "named", [{"eventType": "order.created", "type": 7}, {"eventType": [], "type": "order.created"}]
)
def test_a_type_that_is_no_text_hides_no_other(named: dict[str, object]) -> None:
    body = msgspec.json.encode({**named, "data": ORDER})
    assert SOURCE.identify(delivery(None, body)) == Identity("order.created", "msg_1")
    assert isinstance(message_of(body), OrderCreated)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"type":1}', DEEP])
def test_a_body_that_cannot_be_read_has_no_type(body: bytes) -> None:
    assert SOURCE.identify(delivery(None, body)) == Identity("", "msg_1")


ORDER: dict[str, object] = {
    "number": "cf-1",
    "user_id": USER_ID,
    "amount_minor": 49900,
    "currency": "INR",
    "items": [{"sku": "s-1", "quantity": 2, "unit_price_minor": 24950}],
    "payment_provider": "razorpay",
    "provider_order_id": "order_1",
    "created_at": 1_764_547_300,
}
EXAMPLES: list[tuple[str, dict[str, object], Message]] = [
    (
        "command.checkout",
        {**ORDER, "requested_at": 1_764_547_300.5},
        CheckoutRequested(
            number="cf-1",
            user_id=USER_ID,
            amount_minor=49900,
            currency="INR",
            items=(OrderItem(sku="s-1", quantity=2, unit_price_minor=24950),),
            requested_at=1_764_547_300.5,
        ),
    ),
    (
        "order.created",
        ORDER,
        OrderCreated(
            number="cf-1",
            user_id=USER_ID,
            amount_minor=49900,
            currency="INR",
            items=(OrderItem(sku="s-1", quantity=2, unit_price_minor=24950),),
            payment_provider="razorpay",
            provider_order_id="order_1",
            created_at=1_764_547_300.0,
        ),
    ),
    (
        "notification.email",
        {"to": "a@b.example", "subject": "Hello", "text": "plain", "html": "<p>rich</p>"},
        EmailRequested(to="a@b.example", subject="Hello", text="plain", html="<p>rich</p>"),
    ),
    (
        "inventory.stock.updated",
        {"sku": "s-1", "quantity": 7, "reported_at": "2025-12-01T00:01:40Z"},
        StockReported(sku="s-1", quantity=7, reported_at=1_764_547_300.0),
    ),
    (
        "analytics.audit",
        {"actor": "shop", "action": "login", "subject": "user:1", "details": {"fromIp": "x"}},
        AuditReported(actor="shop", action="login", subject="user:1", details={"fromIp": "x"}),
    ),
    (
        "analytics.metric",
        {"name": "carts", "value": 3, "labels": {"shopId": "1"}, "measured_at": 1_764_547_300_000},
        MetricReported(
            name="carts", value=3.0, labels={"shopId": "1"}, measured_at=1_764_547_300.0
        ),
    ),
    (
        "analytics.dlq",
        {"origin": "emails", "message_json": '{"a":1}', "reason": "bounced"},
        FailureReported(origin="emails", message_json='{"a":1}', reason="bounced"),
    ),
]


def camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def in_camel_case(fields: dict[str, object]) -> dict[str, object]:
    renamed = {camel_case(name): value for name, value in fields.items()}
    items = fields.get("items")
    if isinstance(items, list):
        renamed["items"] = [in_camel_case(item) for item in items]
    return renamed


@pytest.mark.parametrize(("event_type", "data", "message"), EXAMPLES)
def test_each_event_becomes_its_message(
    event_type: str, data: dict[str, object], message: Message
) -> None:
    expected = (Translated(message),)
    assert SOURCE.translate(stored(published(event_type, data))) == expected
    body = msgspec.json.encode({"type": event_type, "payload": in_camel_case(data)})
    assert SOURCE.translate(stored(body)) == expected


def test_numbers_may_be_spelled_otherwise() -> None:
    item = {"sku": 7, "quantity": 2.0, "unitPriceMinor": 24950.0}
    numbers = {"number": 1001, "provider_order_id": 8, "amount_minor": 49900.0, "items": [item]}
    body = published("order.created", {**ORDER, **numbers, "created_at": 1_764_547_300_000.0})
    assert message_of(body) == OrderCreated(
        number="1001",
        user_id=USER_ID,
        amount_minor=49900,
        currency="INR",
        items=(OrderItem(sku="7", quantity=2, unit_price_minor=24950),),
        payment_provider="razorpay",
        provider_order_id="8",
        created_at=1_764_547_300.0,
    )


def test_a_message_that_was_given_up_may_be_any_json() -> None:
    data = {"origin": "emails", "reason": "bounced", "message": {"to": ["a", None]}}
    message = message_of(published("analytics.dlq", data))
    assert isinstance(message, FailureReported)
    assert message.message_json == '{"to":["a",null]}'


@pytest.mark.parametrize(
    ("timestamp", "reported_at"),
    [
        (None, NOW),
        (1_764_547_300, 1_764_547_300.0),
        (1_764_547_300_250, 1_764_547_300.25),
        ("2025-12-01T05:31:40+05:30", 1_764_547_300.0),
        ("2025-12-01T00:01:40", 1_764_547_300.0),
    ],
)
def test_what_says_no_time_is_of_the_envelopes_time_else_that_of_arrival(
    timestamp: object, reported_at: float
) -> None:
    body = published("inventory.stock.updated", {"sku": "s", "quantity": 1}, timestamp=timestamp)
    assert message_of(body) == StockReported(sku="s", quantity=1, reported_at=reported_at)


def test_an_event_type_that_is_unknown_is_followed_by_nothing() -> None:
    assert SOURCE.translate(stored(published("never.heard.of", [1]))) == ()


@pytest.mark.parametrize(
    ("event_type", "data", "field"),
    [
        ("command.checkout", {"number": "1", "currency": "INR"}, "amount_minor"),
        ("order.created", {**ORDER, "amount_minor": 499.5}, "amount_minor"),
        ("order.created", {**ORDER, "amount_minor": 1e300}, "amount_minor"),
        ("order.created", {**ORDER, "amount_minor": True}, "amount_minor"),
        ("order.created", {**ORDER, "number": 1001.0}, "number"),
        ("order.created", {**ORDER, "number": True}, "number"),
        ("order.created", {**ORDER, "items": [{"sku": "s"}]}, "quantity"),
        ("order.created", {**ORDER, "items": ["s"]}, "items"),
        ("order.created", {**ORDER, "user_id": "somebody"}, "user_id"),
        ("order.created", {**ORDER, "created_at": "yesterday"}, "created_at"),
        ("notification.email", {"to": "a@b.example\nBcc: c@d", "subject": "", "text": ""}, "to"),
        ("inventory.stock.updated", {"sku": "s", "quantity": -1}, "quantity"),
        ("analytics.audit", {"actor": "a", "action": "b"}, "subject"),
        ("analytics.metric", {"name": "n", "value": "high"}, "value"),
        ("analytics.dlq", {"origin": "o", "reason": "r"}, "message_json"),
    ],
)
def test_an_event_that_lacks_what_it_must_have_names_the_field(
    event_type: str, data: object, field: str
) -> None:
    assert_unreadable(SOURCE, published(event_type, data), saying=field)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", BODY, b'{"type":"order.created"}', b'{"type":"order.created","data":[]}', DEEP],
)
def test_what_is_no_event_at_all_is_unreadable(body: bytes) -> None:
    assert_unreadable(SOURCE, body)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [
            {"eventType": event_type, "data": data, "timestamp": 1_764_547_300}
            for event_type, data, _ in EXAMPLES
        ]
    ).flatmap(one_value_off)
)
def test_an_event_with_anything_in_it_gives_a_good_message_or_none(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)
