"""What is signed here by plain means, the senders' own libraries and ours take alike."""

import base64
import hashlib
import hmac
import unicodedata
from collections.abc import Callable, Mapping

import easypost
import jwt
import pytest
import qstash
import razorpay
import stripe
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from easypost.util import validate_webhook
from razorpay.utility import Utility
from sendgrid.helpers.eventwebhook import EventWebhook

from couponflow.config_sources import (
    EasypostSettings,
    QstashSettings,
    RazorpaySettings,
    SendgridSettings,
    StripeSettings,
)
from couponflow.kernel.clock import SystemClock
from couponflow.webhooks.contract import Delivery, Source
from couponflow.webhooks.sources.easypost import EasypostSource
from couponflow.webhooks.sources.qstash import QstashSource
from couponflow.webhooks.sources.razorpay import RazorpaySource
from couponflow.webhooks.sources.sendgrid import SendgridSource
from couponflow.webhooks.sources.stripe import StripeSource

pytestmark = pytest.mark.once

BODY = '{"id":"evt_1","name":"Śrī ₹"}\r\n'.encode()
TAMPERED = BODY.replace(b"evt_1", b"evt_2")
URL = "https://shop.example/api/webhook"
QSTASH_KEY = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
QSTASH_NEXT_KEY = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
SENDGRID_KEY = ec.derive_private_key(7_919, ec.SECP256R1())
SENDGRID_PUBLIC_KEY = base64.b64encode(
    SENDGRID_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()
EASYPOST_SECRET = "sécret"


def now() -> int:
    """By the machine's clock: the libraries know no other."""
    return int(SystemClock().now())


def hex_digest(secret: bytes, signed: bytes) -> str:
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


def is_taken_by_ours(source: Source, headers: Mapping[str, str], body: bytes) -> bool:
    sent = Delivery(method="POST", headers=headers, body=body, received_at=now())
    return source.verify(sent) is None


def is_taken_by(verify: Callable[[], object], *refusals: type[Exception]) -> bool:
    """Whether a library's verifier neither says no nor raises one of its refusals."""
    try:
        return verify() is not False
    except refusals:
        return False


BODIES = pytest.mark.parametrize(
    ("body", "is_right"), [(BODY, True), (TAMPERED, False)], ids=["as signed", "tampered with"]
)
SECRETS = pytest.mark.parametrize("is_ours", [True, False], ids=["our secret", "another's"])


@BODIES
@SECRETS
def test_razorpay(body: bytes, is_right: bool, is_ours: bool) -> None:
    signature = hex_digest(b"secret" if is_ours else b"Secret", BODY)
    utility = Utility()
    source = RazorpaySource(RazorpaySettings(webhook_secret=("secret",)))
    refusal = razorpay.errors.SignatureVerificationError

    assert is_taken_by_ours(source, {"x-razorpay-signature": signature}, body) is (
        is_right and is_ours
    )
    assert is_taken_by(
        lambda: utility.verify_webhook_signature(body.decode(), signature, "secret"), refusal
    ) is (is_right and is_ours)


@BODIES
@SECRETS
@pytest.mark.parametrize(("age_seconds", "is_fresh"), [(290, True), (310, False)])
def test_stripe(
    body: bytes, is_right: bool, is_ours: bool, age_seconds: int, is_fresh: bool
) -> None:
    signed_at = now() - age_seconds
    secret = b"whsec_1" if is_ours else b"whsec_2"
    signature = hex_digest(secret, b"%d." % signed_at + BODY)
    header = f"t={signed_at},v1={'0' * 64},v0=x,v1={signature}"
    source = StripeSource(StripeSettings(webhook_secret=("whsec_1",)))
    expected = is_right and is_ours and is_fresh

    assert is_taken_by_ours(source, {"stripe-signature": header}, body) is expected
    assert (
        is_taken_by(
            lambda: stripe.WebhookSignature.verify_header(body, header, "whsec_1", tolerance=300),
            stripe.SignatureVerificationError,
        )
        is expected
    )


@BODIES
@pytest.mark.parametrize(
    ("key", "is_ours"),
    [(QSTASH_KEY, True), (QSTASH_NEXT_KEY, True), (QSTASH_KEY[::-1], False)],
    ids=["current key", "next key", "another's"],
)
@pytest.mark.parametrize(
    ("claims", "is_good"),
    [
        ({}, True),
        ({"sub": "https://shop.example/other"}, False),
        ({"iss": "Downstash"}, False),
        ({"exp": -60}, False),
        ({"nbf": 60}, False),
    ],
    ids=["right", "elsewhere", "another issuer", "expired", "not yet"],
)
def test_qstash(
    body: bytes, is_right: bool, key: str, is_ours: bool, claims: dict[str, object], is_good: bool
) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha256(BODY).digest()).decode()
    standard = {
        "iss": "Upstash",
        "sub": URL,
        "exp": 300,
        "nbf": 0,
        "body": digest,
    }
    made = {**standard, **claims}
    # Moments are from now on, whenever that is.
    made |= {name: now() + int(str(made[name])) for name in ("exp", "nbf")}
    token = jwt.encode(made, key, algorithm="HS256")
    receiver = qstash.Receiver(QSTASH_KEY, QSTASH_NEXT_KEY)
    settings = QstashSettings(
        current_signing_key=QSTASH_KEY, next_signing_key=QSTASH_NEXT_KEY, destination_urls=(URL,)
    )
    expected = is_right and is_ours and is_good

    assert is_taken_by_ours(QstashSource(settings), {"upstash-signature": token}, body) is expected
    assert (
        is_taken_by(
            lambda: receiver.verify(signature=token, body=body.decode(), url=URL),
            qstash.errors.SignatureError,
        )
        is expected
    )


@BODIES
@SECRETS
def test_sendgrid(body: bytes, is_right: bool, is_ours: bool) -> None:
    timestamp = str(now())
    key = SENDGRID_KEY if is_ours else ec.derive_private_key(7_907, ec.SECP256R1())
    signed = key.sign(timestamp.encode() + BODY, ec.ECDSA(SHA256()))
    signature = base64.b64encode(signed).decode()
    source = SendgridSource(SendgridSettings(webhook_public_key=(SENDGRID_PUBLIC_KEY,)))
    verifier = EventWebhook(SENDGRID_PUBLIC_KEY)
    headers = {
        "x-twilio-email-event-webhook-signature": signature,
        "x-twilio-email-event-webhook-timestamp": timestamp,
    }

    assert is_taken_by_ours(source, headers, body) is (is_right and is_ours)
    assert verifier.verify_signature(body.decode(), signature, timestamp) is (is_right and is_ours)


@BODIES
@SECRETS
def test_easypost(body: bytes, is_right: bool, is_ours: bool) -> None:
    secret = EASYPOST_SECRET if is_ours else "secret"
    key = unicodedata.normalize("NFKD", secret).encode()
    header = "hmac-sha256-hex=" + hex_digest(key, BODY)
    source = EasypostSource(EasypostSettings(webhook_secret=(EASYPOST_SECRET,)))

    assert is_taken_by_ours(source, {"x-hmac-signature": header}, body) is (is_right and is_ours)
    assert is_taken_by(
        lambda: validate_webhook(body, {"X-Hmac-Signature": header}, EASYPOST_SECRET),
        easypost.errors.SignatureVerificationError,
    ) is (is_right and is_ours)
