"""What the sender sends: Razorpay's `payment.captured`, truly signed, each its own event."""

import hmac
import random
import string
from dataclasses import dataclass
from pathlib import Path

import msgspec

SECRET = "bench-razorpay-secret"
STARTED_AT = 1_764_547_200
_ALPHABET = string.ascii_letters + string.digits

_PAYMENT: dict[str, object] = {
    "entity": "payment",
    "currency": "INR",
    "status": "captured",
    "invoice_id": None,
    "international": False,
    "amount_refunded": 0,
    "amount_transferred": 0,
    "refund_status": None,
    "captured": True,
    "description": "Gift card",
    "card_id": None,
    "bank": None,
    "wallet": None,
    "vpa": None,
    "email": "asha@example.com",
    "error_code": None,
    "error_description": None,
    "error_source": None,
    "error_step": None,
    "error_reason": None,
}


@dataclass(frozen=True, slots=True)
class Requests:
    """A file of requests, each behind its length in four digits, as `load.lua` reads them."""

    path: Path
    batch: str
    """Four letters that its order ids begin with; they go on with the event's number."""
    count: int


def write_requests(path: Path, batch: str, count: int) -> Requests:
    """Sign so many events; the same for the same letters."""
    randomness = random.Random(batch)
    with path.open("wb") as file:
        for number in range(count):
            request = _request(_body(batch, number, randomness), _identifier(randomness))
            file.write(b"%04d%b" % (len(request), request))
    return Requests(path, batch, count)


def _request(body: bytes, event_id: str) -> bytes:
    signature = hmac.digest(SECRET.encode(), body, "sha256").hex()
    head = (
        "POST /razorpay HTTP/1.1\r\n"
        "Host: hooks.coupons.example\r\n"
        "User-Agent: Razorpay-Webhook/v1\r\n"
        "Accept: */*\r\n"
        "Content-Type: application/json\r\n"
        f"X-Razorpay-Event-Id: {event_id}\r\n"
        f"X-Razorpay-Signature: {signature}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _body(batch: str, number: int, randomness: random.Random) -> bytes:
    amount = 100 * randomness.randint(99, 9_999)
    fee = amount * 236 // 10_000
    captured_at = STARTED_AT + number // 1_000
    payment = {
        "id": f"pay_{_identifier(randomness)}",
        **_PAYMENT,
        **_method(number, randomness),
        "amount": amount,
        "base_amount": amount,
        "order_id": f"order_{batch}{number:010}",
        "contact": f"+9198{randomness.randrange(10**8):08}",
        "notes": {"cart_id": f"c_{number}"},
        "fee": fee,
        "tax": fee * 18 // 118,
        "created_at": captured_at - 3,
    }
    return msgspec.json.encode(
        {
            "entity": "event",
            "account_id": "acc_Kq3w8LmN2pQ5rS",
            "event": "payment.captured",
            "contains": ["payment"],
            "payload": {"payment": {"entity": payment}},
            "created_at": captured_at,
        }
    )


def _method(number: int, randomness: random.Random) -> dict[str, object]:
    reference = f"{randomness.randrange(10**12):012}"
    if number % 4 == 0:
        return {
            "method": "netbanking",
            "bank": "HDFC",
            "acquirer_data": {"bank_transaction_id": reference},
        }
    vpa = f"payer{number}@exampleupi"
    return {
        "method": "upi",
        "vpa": vpa,
        "acquirer_data": {"rrn": reference},
        "upi": {"payer_account_type": "bank_account", "vpa": vpa, "flow": "intent"},
    }


def _identifier(randomness: random.Random) -> str:
    return "".join(randomness.choices(_ALPHABET, k=14))
