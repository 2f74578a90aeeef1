import base64
import hashlib
import hmac
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.webhooks.signatures import (
    Algorithm,
    from_base64,
    from_hex,
    hmac_matches,
    refused_by_age,
    token_matches,
)

NOW = 1_790_000_000.0
OLD, NEW, OTHERS = b"old", b"new", b"somebody else's"


def signed(secret: bytes, algorithm: Algorithm = "sha256", message: bytes = b"event") -> bytes:
    return hmac.new(secret, message, getattr(hashlib, algorithm)).digest()


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_any_live_secret_matches_any_of_the_signatures(algorithm: Algorithm) -> None:
    for secret in (OLD, NEW):
        given_signatures = [signed(OTHERS, algorithm), signed(secret, algorithm), b""]
        assert hmac_matches([OLD, NEW], b"event", given_signatures, algorithm)
    assert not hmac_matches([OLD, NEW], b"event", [signed(OTHERS, algorithm)], algorithm)


def test_nothing_matches_without_a_secret_or_a_signature() -> None:
    assert not hmac_matches([], b"event", [signed(OLD)], "sha256")
    assert not hmac_matches([OLD], b"event", [], "sha256")
    assert not hmac_matches([OLD], b"event", [b""], "sha256")


def test_a_signature_of_another_length_or_algorithm_does_not_match() -> None:
    right = signed(OLD)
    for wrong in (right[:-1], right + b"\0", right[:16], signed(OLD, "sha1")):
        assert not hmac_matches([OLD], b"event", [wrong], "sha256")


def test_signatures_that_can_be_read_once_only_are_compared_with_every_secret() -> None:
    assert hmac_matches([OTHERS, OLD], b"event", iter([signed(OLD)]), "sha256")


@given(st.binary(min_size=1), st.binary(), st.data())
def test_one_flipped_bit_of_anything_does_not_match(
    secret: bytes, message: bytes, data: st.DataObject
) -> None:
    def flipped(right: bytes) -> bytes:
        place = data.draw(st.integers(0, 8 * len(right) - 1))
        return (int.from_bytes(right, "big") ^ (1 << place)).to_bytes(len(right), "big")

    right = signed(secret, message=message)
    assert hmac_matches([secret], message, [right], "sha256")
    assert not hmac_matches([secret], message, [flipped(right)], "sha256")
    if message:
        assert not hmac_matches([secret], flipped(message), [right], "sha256")


def test_a_token_is_any_of_the_secrets_as_a_whole() -> None:
    assert token_matches([b"old", b"new"], "new")
    for wrong in ("", "ne", "new ", "NEW", "old,new", "né", "new\udcff"):
        assert not token_matches([b"old", b"new"], wrong)
    assert not token_matches([], "")


@given(st.binary(max_size=64))
def test_one_signature_has_one_spelling(signature: bytes) -> None:
    assert from_hex(signature.hex()) == signature
    assert from_base64(base64.b64encode(signature).decode()) == signature


@pytest.mark.parametrize(
    "text", ["0", "0g", "AB", "aB", " ab", "ab ", "ab\n", "0xab", "\u0660\u0660", "é"]
)
def test_other_hex_is_none(text: str) -> None:
    assert from_hex(text) is None


@pytest.mark.parametrize(
    "text",
    ["YQ", "YQ=", "YR==", "YQ==\n", " YQ==", "YQ= =", "YQ==YQ==", "_-8=", "=", "é", "YQ==\0"],
)
def test_other_base64_is_none(text: str) -> None:
    assert from_base64(text) is None


@given(st.text())
def test_whatever_is_read_is_written_so(text: str) -> None:
    read = from_hex(text)
    assert read is None or read.hex() == text
    decoded = from_base64(text)
    assert decoded is None or base64.b64encode(decoded).decode() == text


@pytest.mark.parametrize("away", [-301.0, 301.0])
def test_what_was_signed_too_far_from_now_is_stale(away: float) -> None:
    refused = refused_by_age(NOW + away, NOW, 300.0)
    assert refused is not None
    assert (refused.reason, refused.detail) == ("stale", f"signed {-away:.0f} s ago")


@pytest.mark.parametrize(
    ("away", "tolerance_seconds"), [(-300.0, 300.0), (300.0, 300.0), (0.0, 1.0), (-1e9, 0.0)]
)
def test_what_was_signed_near_enough_is_not(away: float, tolerance_seconds: float) -> None:
    assert refused_by_age(NOW + away, NOW, tolerance_seconds) is None
