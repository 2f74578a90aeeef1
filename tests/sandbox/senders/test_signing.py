"""What is signed is what the providers' documents and their own verifiers want."""

import base64
import random
from collections import Counter

import jwt
import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from couponflow.sandbox.senders.events import Event, SenderName, SignedRequest
from couponflow.sandbox.senders.keys import demo_keys
from couponflow.sandbox.senders.script import DISORDERLY, script
from couponflow.sandbox.senders.signing import (
    easypost_signature,
    qstash_signature,
    razorpay_signature,
    sendgrid_signature,
    sign,
    sign_again,
    stripe_signature,
)
from tests.sandbox.senders import official

pytestmark = pytest.mark.once

KEYS = demo_keys(random.Random(1))
OTHER_KEYS = demo_keys(random.Random(2))
NOW = 1_790_000_000.0
EVENT = Event(source="stripe", event_id="evt_1", body=b'{"id":"evt_1","object":"event"}')


def test_razorpay_signs_as_published() -> None:
    plain = (
        b'{"entity":"event","event":"payment.captured","contains":["payment"],'
        b'"created_at":1700000000}'
    )
    assert razorpay_signature("whsec_rzp_test", plain) == (
        "16110c3dea2749135c7f860bdf60c8ac662ad449e6b8021a563e0487252a0cff"
    )
    accented = '{"notes":{"name":"Śrī ₹"}}'.encode()
    assert razorpay_signature("whsec_rzp_test", accented) == (
        "ebb9904d179037cc1d39a3d32bf86670a50c23f0cd2fdc92a76a76c306f77cfe"
    )


def test_stripe_signs_as_published() -> None:
    body = b'{"id":"evt_test_1","object":"event","type":"payment_intent.succeeded"}'
    assert stripe_signature("whsec_test_secret", body, 1_700_000_000) == (
        "t=1700000000,v1=871acfe933554b446cc41d791076dd56a10c0553cc61aafbeb881d0082b45043"
    )


def test_easypost_signs_as_published_with_the_secret_taken_apart() -> None:
    body = b'{"id":"evt_1","object":"Event"}'
    wanted = "hmac-sha256-hex=17006b8eff08bd0d7eca5be9af7b35a3eb15dcd6774cb38553822743f11f2deb"
    assert easypost_signature("s\u00e9cret", body) == wanted
    assert easypost_signature("se\u0301cret", body) == wanted


def test_qstash_signs_as_published() -> None:
    signed = qstash_signature(
        "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
        b'{"hello":"world"}',
        "https://shop.example/hooks/qstash",
        1_700_000_000,
        "jwt_test_1",
    )
    assert signed == (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJVcHN0YXNoIiwic3ViIjoiaHR0cHM6Ly9zaG9wLmV4"
        "YW1wbGUvaG9va3MvcXN0YXNoIiwiZXhwIjoxNzAwMDAwMzAwLCJuYmYiOjE3MDAwMDAwMDAsImlhdCI6MTcwMDAwMD"
        "AwMCwianRpIjoiand0X3Rlc3RfMSIsImJvZHkiOiJrNkk1Y2FrVTVlckw4S2pTVVZUTm93bkR3Y2N2dTVrVTFIeGc4"
        "OHRvRllnPSJ9.GIo_xLoZ9ziM3TjNNXUi4dab75BO6tf5m5Pr2LgI0M4"
    )


def test_sendgrid_signs_the_timestamp_and_the_body_with_nothing_between_them() -> None:
    key = KEYS.sendgrid_private_key
    signature = base64.b64decode(sendgrid_signature(key, b"[]\r\n", "1600112502"))
    scheme = ec.ECDSA(hashes.SHA256())
    key.public_key().verify(signature, b"1600112502[]\r\n", scheme)
    with pytest.raises(InvalidSignature):
        key.public_key().verify(signature, b"1600112502[]", scheme)


@pytest.mark.parametrize("source", list(official.VERIFIERS))
def test_the_official_verifier_accepts_all_that_is_signed_and_with_no_other_key(
    source: SenderName,
) -> None:
    requests = script(random.Random(7), KEYS, official.now(), 60, DISORDERLY)
    signed = [request for request in requests if request.source == source]
    assert len(signed) > 4
    assert [request for request in signed if not official.accepts(request, KEYS)] == []
    assert [request for request in signed if official.accepts(request, OTHER_KEYS)] == []
    flipped = msgspec.structs.replace(signed[0], body=signed[0].body.replace(b":", b": ", 1))
    assert not official.accepts(flipped, KEYS)


def test_those_who_sign_nothing_bring_their_secret_along() -> None:
    requests = script(random.Random(7), KEYS, NOW, 24, DISORDERLY)
    brought: Counter[tuple[str, str]] = Counter()
    for request in requests:
        path, _, query = request.path.partition("?")
        if request.source == "shiprocket":
            brought[path, request.headers["x-api-key"]] += 1
        elif request.source in ("admitad", "cuelinks", "cj"):
            brought[path, ""] += 1
        elif request.source == "vcommission":
            brought[path, query.partition("&")[0]] += 1
    secrets = KEYS.network_secrets
    assert set(brought) == {
        ("/parcels", KEYS.shiprocket_token),
        (f"/admitad/{secrets['admitad']}", ""),
        (f"/cuelinks/{secrets['cuelinks']}", ""),
        (f"/cj/{secrets['cj']}", ""),
        ("/vcommission", f"secret={secrets['vcommission']}"),
    }
    report = Event(source="msg91", event_id="1", body=b"{}")
    assert sign(report, KEYS, NOW).path == f"/msg91/{KEYS.msg91_token}"


def test_stripe_signs_each_delivery_anew() -> None:
    first = sign(EVENT, KEYS, NOW)
    again = sign_again(first, KEYS, NOW + 3_600, retried=1)
    assert again.headers["Stripe-Signature"].startswith(f"t={NOW + 3_600:.0f},")
    assert first.headers["Stripe-Signature"].startswith(f"t={NOW:.0f},")
    assert (again.event, again.body, again.retried) == (EVENT, first.body, 1)


def test_qstash_counts_deliveries_of_one_message_and_signs_each_anew() -> None:
    event = msgspec.structs.replace(EVENT, source="qstash", event_id="msg_1")
    first = sign(event, KEYS, NOW)
    again = sign_again(first, KEYS, NOW + 12, retried=1)
    assert [each.headers["Upstash-Message-Id"] for each in (first, again)] == ["msg_1", "msg_1"]
    assert [each.headers["Upstash-Retried"] for each in (first, again)] == ["0", "1"]
    assert claims(first)["exp"] == NOW + 300
    assert claims(again)["exp"] == NOW + 312
    assert claims(again)["jti"] != claims(first)["jti"]


@pytest.mark.parametrize("source", ["razorpay", "sendgrid", "msg91", "easypost", "admitad"])
def test_the_others_send_the_same_bytes_again(source: SenderName) -> None:
    first = sign(msgspec.structs.replace(EVENT, source=source), KEYS, NOW)
    again = sign_again(first, KEYS, NOW + 3_600, retried=2)
    assert again == msgspec.structs.replace(first, retried=2)


def claims(request: SignedRequest) -> dict[str, object]:
    return jwt.decode(
        request.headers["Upstash-Signature"],
        KEYS.qstash_signing_key,
        algorithms=["HS256"],
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
