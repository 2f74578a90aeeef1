import base64
import hashlib
import hmac
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings

from couponflow.config_sources import GenericSettings
from couponflow.messages import StockReported
from couponflow.webhooks.contract import Delivery, Identity, Refused, Translated
from couponflow.webhooks.sources.generic import GenericSource
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

SECRET = "a secret of the sender"
BODY = b'{"kind":"stock","data":{"id":"evt-1"}}'
PLAIN = GenericSettings(secrets=(SECRET, "the one before"), signature_header="X-Signature")
STRICT = GenericSettings(
    secrets=(SECRET,),
    algorithm="sha512",
    signature_header="Acme-Signature",
    encoding="base64",
    prefix="v1=",
    signed="{id}.{timestamp}.{body}",
    timestamp_header="Acme-Time",
    id_header="Acme-Id",
)
STRICT_SOURCE = GenericSource("acme", STRICT)
SIGNED_AT = "1700000000"


def source(**changes: object) -> GenericSource:
    changed = msgspec.structs.replace(PLAIN, **changes)
    return GenericSource("acme", changed)


def delivery(headers: Mapping[str, str], body: bytes = BODY, received_at: float = NOW) -> Delivery:
    return Delivery(method="POST", headers=headers, body=body, received_at=received_at)


def hex_of(signed: bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    return hmac.digest(secret.encode(), signed, algorithm).hex()


def strict_headers(secret: bytes = SECRET.encode()) -> dict[str, str]:
    signed = f"evt-1.{SIGNED_AT}.".encode() + BODY
    signature = base64.b64encode(hmac.digest(secret, signed, hashlib.sha512)).decode()
    return {"acme-signature": f"v1={signature}", "acme-time": SIGNED_AT, "acme-id": "evt-1"}


def test_it_is_named_by_its_configuration() -> None:
    assert STRICT_SOURCE.name == "generic/acme"
    assert STRICT_SOURCE.header_names == ("acme-signature", "acme-time", "acme-id")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("prefix", ["", "sha=", "Signature "])
def test_algorithm_and_prefix_are_as_configured(algorithm: str, prefix: str) -> None:
    acme = source(algorithm=algorithm, prefix=prefix)
    signature = hex_of(BODY, algorithm=algorithm)
    assert acme.verify(delivery({"x-signature": prefix + signature})) is None
    assert acme.verify(delivery({"x-signature": "other" + signature})) is not None
    other = hex_of(BODY, algorithm="md5")
    assert acme.verify(delivery({"x-signature": prefix + other})) is not None


def test_a_signature_may_be_in_base64() -> None:
    signature = base64.b64encode(bytes.fromhex(hex_of(BODY))).decode()
    acme = source(encoding="base64")
    assert acme.verify(delivery({"x-signature": signature})) is None
    assert acme.verify(delivery({"x-signature": signature.rstrip("=")})) is not None
    assert acme.verify(delivery({"x-signature": hex_of(BODY)})) is not None


def test_a_signature_in_hex_is_in_either_case_but_not_in_both() -> None:
    acme = source(prefix="sha256=")
    signature = hex_of(BODY)
    assert acme.verify(delivery({"x-signature": f"sha256={signature.upper()}"})) is None
    mixed = signature[:32] + signature[32:].upper()
    for other in (mixed, signature.upper()[:-2], f" {signature.upper()}", "\u017f" * 64):
        assert acme.verify(delivery({"x-signature": f"sha256={other}"})) is not None


@settings(max_examples=100, deadline=None)
@given(one_character_off(hex_of(BODY)) | one_character_off(hex_of(BODY).upper()))
def test_a_byte_of_a_signature_in_hex_is_not_to_be_changed(signature: str) -> None:
    assert source().verify(delivery({"x-signature": signature})) is not None


def test_a_signature_without_its_prefix_is_refused() -> None:
    assert source(prefix="sha256=").verify(delivery({"x-signature": hex_of(BODY)})) is not None


def test_a_secret_that_is_being_replaced_is_still_good() -> None:
    acme = source()
    assert acme.verify(delivery({"x-signature": hex_of(BODY, "the one before")})) is None
    assert acme.verify(delivery({"x-signature": hex_of(BODY, "yet another")})) is not None


def test_an_empty_secret_is_none() -> None:
    acme = source(secrets=("",))
    assert acme.verify(delivery({"x-signature": hex_of(BODY, "")})) is not None


@pytest.mark.parametrize(
    ("signed", "text"),
    [
        ("{body}", b"%b" % BODY),
        ("{timestamp}.{body}", b"1700000000.%b" % BODY),
        ("{id}.{timestamp}.{body}", b"evt-1.1700000000.%b" % BODY),
        ("v0:{timestamp}:{body}{other}", b"v0:1700000000:%b{other}" % BODY),
    ],
)
def test_what_is_signed_is_as_configured(signed: str, text: bytes) -> None:
    acme = source(signed=signed, timestamp_header="X-Time", id_header="X-Id")
    headers = {"x-time": SIGNED_AT, "x-id": "evt-1"}
    assert acme.verify(delivery({**headers, "x-signature": hex_of(text)})) is None
    assert acme.verify(delivery({**headers, "x-signature": hex_of(text + b".")})) is not None


def test_a_body_may_be_empty_and_may_look_like_a_placeholder() -> None:
    acme = source(signed="{timestamp}.{body}", timestamp_header="X-Time")
    for body in (b"", b"{timestamp}"):
        signature = hex_of(b"1700000000." + body)
        headers = {"x-time": SIGNED_AT, "x-signature": signature}
        assert acme.verify(delivery(headers, body)) is None


@pytest.mark.parametrize("header", ["acme-signature", "acme-time", "acme-id"])
@pytest.mark.parametrize("value", ["missing", "", "é", "1e9", "-1", "1,1", " 1"])
def test_every_header_that_is_signed_must_be_there(header: str, value: str) -> None:
    headers = {**strict_headers(), header: value}
    if value == "missing":
        del headers[header]
    refused = STRICT_SOURCE.verify(delivery(headers))
    assert refused is not None
    assert refused.reason == "bad-signature"


@pytest.mark.parametrize(
    "timestamp", ["nan", "inf", "1e9", "1_700_000_000", "+1700000000", "1" * 400]
)
def test_a_signed_time_that_is_no_number_of_seconds_is_refused(timestamp: str) -> None:
    acme = source(signed="{timestamp}.{body}", timestamp_header="X-Time", tolerance_seconds=0)
    signature = hex_of(f"{timestamp}.".encode() + BODY)
    refused = acme.verify(delivery({"x-time": timestamp, "x-signature": signature}))
    assert refused is not None
    assert refused.reason == "bad-signature"


@pytest.mark.parametrize("signed", ["{timestamp}.{body}", "{id}.{body}"])
def test_nothing_is_believed_where_what_is_signed_has_no_header(signed: str) -> None:
    acme = source(signed=signed)
    assert acme.verify(delivery({"x-signature": hex_of(b"." + BODY)})) is not None


@pytest.mark.parametrize(
    ("received_at", "tolerance_seconds", "reason"),
    [
        (1_700_000_300.0, 300, None),
        (1_700_000_300.5, 300, "stale"),
        (1_699_999_699.5, 300, "stale"),
        (1_800_000_000.0, 0, None),
    ],
)
def test_a_time_that_is_off_is_stale(
    received_at: float, tolerance_seconds: float, reason: str | None
) -> None:
    acme = source(timestamp_header="X-Time", tolerance_seconds=tolerance_seconds)
    headers = {"x-time": SIGNED_AT, "x-signature": hex_of(BODY)}
    refused = acme.verify(delivery(headers, received_at=received_at))
    assert (refused.reason if refused else None) == reason


def test_the_right_delivery_is_accepted() -> None:
    assert STRICT_SOURCE.verify(delivery(strict_headers())) is None


@settings(max_examples=50)
@given(one_byte_off(BODY))
def test_a_byte_of_the_body_is_not_to_be_changed(body: bytes) -> None:
    assert STRICT_SOURCE.verify(delivery(strict_headers(), body)) is not None


@pytest.mark.parametrize("header", ["acme-signature", "acme-time", "acme-id"])
def test_a_byte_of_a_signed_header_is_not_to_be_changed(header: str) -> None:
    right = strict_headers()

    @settings(max_examples=50)
    @given(one_character_off(right[header]))
    def check(value: str) -> None:
        assert STRICT_SOURCE.verify(delivery({**right, header: value})) is not None

    check()


@settings(max_examples=50)
@given(one_byte_off(SECRET.encode()))
def test_a_secret_that_is_a_byte_off_is_another(secret: bytes) -> None:
    assert STRICT_SOURCE.verify(delivery(strict_headers(secret))) is not None


@settings(max_examples=50)
@given(anything(STRICT_SOURCE.header_names, list(strict_headers().values())))
def test_nothing_that_is_sent_raises(sent: Delivery) -> None:
    check_that_nothing_is_raised(STRICT_SOURCE, sent)


def test_no_secret_is_shown() -> None:
    refused = STRICT_SOURCE.verify(delivery({}))
    assert isinstance(refused, Refused)
    assert SECRET not in refused.detail
    assert SECRET not in repr(STRICT_SOURCE)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"signed": "{timestamp}"}, r"\{body\}"), ({"channel": "nowhere"}, "'orders'")],
    ids=["the body is not signed", "no such channel"],
)
def test_settings_that_cannot_be_are_refused_without_showing_a_secret(
    changes: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text) as refusal:
        source(**changes)
    assert SECRET not in str(refusal.value)


def test_names_are_in_headers_where_so_configured() -> None:
    acme = source(id_header="X-Id", type_header="X-Type")
    assert acme.identify(delivery({"x-id": "evt-1", "x-type": "stock"})) == Identity(
        "stock", "evt-1"
    )


@pytest.mark.parametrize(
    ("body", "identity"),
    [
        (BODY, Identity("stock", "evt-1")),
        (b'{"kind":7,"data":{"id":8}}', Identity("7", "8")),
        (b'{"kind":null,"data":{"id":[]}}', Identity("", "")),
        (b'{"data":[1]}', Identity("", "")),
        (b'{"kind":"a\\u0000","data":{"id":"%b"}}' % (b"x" * 201), Identity("", "")),
        (b"[]", Identity("", "")),
        (b"\xff", Identity("", "")),
        (DEEP, Identity("", "")),
    ],
    ids=["texts", "numbers", "neither", "no path", "no names", "a list", "no text", "deep"],
)
def test_names_are_in_the_body_where_so_configured(body: bytes, identity: Identity) -> None:
    acme = source(id_field="data.id", type_field="kind")
    assert acme.identify(delivery({}, body)) == identity


STOCK = {"type": "stock.v1", "sku": "s-1", "quantity": 3, "reported_at": 1_764_547_300}
STOCK_MESSAGE = Translated(StockReported(sku="s-1", quantity=3, reported_at=1_764_547_300.0))


def test_without_a_channel_an_event_is_only_kept() -> None:
    assert source().translate(stored(b"\xff")) == ()


def test_the_body_is_a_message_of_its_channel() -> None:
    acme = source(channel="orders")
    assert acme.translate(stored(msgspec.json.encode(STOCK))) == (STOCK_MESSAGE,)


def test_the_message_may_be_within_the_body() -> None:
    acme = source(channel="orders", message_field="data.message")
    body = msgspec.json.encode({"data": {"message": STOCK}})
    assert acme.translate(stored(body)) == (STOCK_MESSAGE,)
    assert_unreadable(acme, b'{"data":{}}', saying=r"`data\.message`")
    assert_unreadable(acme, b'{"data":{"message":[]}}')


@pytest.mark.parametrize(
    ("body", "saying"),
    [
        (msgspec.json.encode({**STOCK, "quantity": -1}), "quantity"),
        (msgspec.json.encode({**STOCK, "type": "email.v1"}), "type"),
        (msgspec.json.encode({"type": "stock.v1"}), "sku"),
        (b"\xff", "."),
        (DEEP, "."),
    ],
    ids=["out of range", "of another channel", "missing field", "no JSON", "deep"],
)
def test_what_is_no_message_of_the_channel_is_unreadable(body: bytes, saying: str) -> None:
    assert_unreadable(source(channel="orders"), body, saying=saying)


@settings(max_examples=50)
@given(one_value_off({"data": {"message": STOCK}}))
def test_an_event_with_anything_in_it_gives_a_good_message_or_none(body: bytes) -> None:
    acme = source(channel="orders", message_field="data.message")
    check_that_messages_fit_or_the_event_is_unreadable(acme, body)
