"""Comparing what a sender signed with what it must have signed, in constant time."""

import base64
import binascii
import hmac
from collections.abc import Iterable, Sequence
from typing import Literal

from couponflow.webhooks.contract import Refused

Algorithm = Literal["sha1", "sha256", "sha512"]


def hmac_matches(
    secrets: Sequence[bytes], message: bytes, signatures: Iterable[bytes], algorithm: Algorithm
) -> bool:
    """Whether any of the signatures was made with any of the secrets.

    Every pair is compared, whatever the outcome of those before it.
    """
    given = list(signatures)
    matches = False
    for secret in secrets:
        wanted = hmac.digest(secret, message, algorithm)
        for signature in given:
            matches |= hmac.compare_digest(wanted, signature)
    return matches


def token_matches(secrets: Sequence[bytes], given: str) -> bool:
    """Whether a token is any of the secrets; one that is not ASCII is none."""
    token = given.encode("utf-8", "surrogatepass")
    matches = False
    for secret in secrets:
        matches |= hmac.compare_digest(secret, token)
    return matches


def from_hex(text: str) -> bytes | None:
    """The bytes of lower-case hex digits, None for anything else: one signature, one spelling."""
    if not text.isascii() or text != text.lower():
        return None
    try:
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        return None


def from_base64(text: str) -> bytes | None:
    """The bytes of standard base64 with its padding, None for anything else."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    # Spare bits that are not zero would give one signature several spellings.
    return decoded if base64.b64encode(decoded).decode() == text else None


def refused_by_age(signed_at: float, now: float, tolerance_seconds: float) -> Refused | None:
    """Refuse what was signed too long ago, or in the future; a tolerance of 0 does not look."""
    if tolerance_seconds and abs(now - signed_at) > tolerance_seconds:
        return Refused("stale", f"signed {now - signed_at:.0f} s ago")
    return None
