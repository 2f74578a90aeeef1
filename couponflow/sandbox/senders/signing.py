"""How each provider proves that it is the one: a small function a scheme, and who uses which."""

import base64
import hashlib
import hmac
import unicodedata
from typing import assert_never

import jwt
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from couponflow.sandbox.senders.events import Event, SignedRequest
from couponflow.sandbox.senders.keys import SenderKeys

QSTASH_TOKEN_SECONDS = 300
# Deterministic, so that a seed always makes the same bytes.
_ECDSA = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


def razorpay_signature(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def stripe_signature(secret: str, body: bytes, at: int) -> str:
    """The whole header."""
    signed = str(at).encode() + b"." + body
    return f"t={at},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def sendgrid_signature(key: ec.EllipticCurvePrivateKey, body: bytes, timestamp: str) -> str:
    return base64.b64encode(key.sign(timestamp.encode() + body, _ECDSA)).decode()


def easypost_signature(secret: str, body: bytes) -> str:
    key = unicodedata.normalize("NFKD", secret).encode()
    return f"hmac-sha256-hex={hmac.new(key, body, hashlib.sha256).hexdigest()}"


def qstash_signature(key: str, body: bytes, url: str, at: int, token_id: str) -> str:
    """A JWT for one delivery to one URL."""
    claims = {
        "iss": "Upstash",
        "sub": url,
        "exp": at + QSTASH_TOKEN_SECONDS,
        "nbf": at,
        "iat": at,
        "jti": token_id,
        "body": base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode(),
    }
    return jwt.encode(claims, key, algorithm="HS256", sort_headers=True)


def sign(event: Event, keys: SenderKeys, at: float, *, retried: int = 0) -> SignedRequest:
    """Make the delivery that the event's provider would make at that time."""
    path, headers = _path_and_headers(event, keys, int(at), retried)
    return SignedRequest(
        event=event,
        method=event.method,
        path=path,
        headers={"Content-Type": event.content_type, **headers} if event.body else headers,
        body=event.body,
        retried=retried,
    )


def sign_again(request: SignedRequest, keys: SenderKeys, at: float, retried: int) -> SignedRequest:
    """Make another delivery of the same event, at that time.

    Stripe and QStash sign each anew. The others send the same bytes; of SendGrid that is assumed.
    """
    if request.source not in ("stripe", "qstash"):
        return msgspec.structs.replace(request, retried=retried)
    signed = sign(request.event, keys, at, retried=retried)
    return msgspec.structs.replace(signed, not_before_seconds=request.not_before_seconds)


def _path_and_headers(
    event: Event, keys: SenderKeys, at: int, retried: int
) -> tuple[str, dict[str, str]]:
    match event.source:
        case "razorpay":
            return "/razorpay", {
                "x-razorpay-event-id": event.event_id,
                "X-Razorpay-Signature": razorpay_signature(keys.razorpay_secret, event.body),
            }
        case "stripe":
            signature = stripe_signature(keys.stripe_secret, event.body, at)
            return "/stripe", {"Stripe-Signature": signature}
        case "sendgrid":
            signature = sendgrid_signature(keys.sendgrid_private_key, event.body, str(at))
            return "/sendgrid", {
                "X-Twilio-Email-Event-Webhook-Signature": signature,
                "X-Twilio-Email-Event-Webhook-Timestamp": str(at),
            }
        case "msg91":
            return f"/msg91/{keys.msg91_token}", {}
        case "qstash":
            return "/api/webhook", _qstash_headers(event, keys, at, retried)
        case "easypost":
            signature = easypost_signature(keys.easypost_secret, event.body)
            return "/easypost", {"X-Hmac-Signature": signature}
        case "shiprocket":
            # It refuses URLs with its own name in them.
            return "/parcels", {"x-api-key": keys.shiprocket_token}
        case "admitad" | "cuelinks" | "cj":
            path = f"/{event.source}/{keys.network_secrets[event.source]}"
            return f"{path}?{event.query}" if event.query else path, {}
        case "vcommission":
            return f"/vcommission?secret={keys.network_secrets['vcommission']}&{event.query}", {}
        case _:
            assert_never(event.source)


def _qstash_headers(event: Event, keys: SenderKeys, at: int, retried: int) -> dict[str, str]:
    url = keys.qstash_destination_url
    named = hashlib.sha256(f"{event.event_id} {at} {retried}".encode()).hexdigest()
    token_id = f"jwt_{named[:22]}"
    return {
        "Upstash-Signature": qstash_signature(
            keys.qstash_signing_key, event.body, url, at, token_id
        ),
        "Upstash-Message-Id": event.event_id,
        "Upstash-Retried": str(retried),
        "Upstash-Caller-Ip": "192.0.2.44",
        "upstash-region": "EU-CENTRAL-1",
        "User-Agent": "Upstash-QStash",
    }
