"""What entries look like, and what is refused."""

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.channel_redis_codec import (
    HANDOVER_MAX,
    MAX_ENTRY_BYTES,
    EntryMalformed,
    EnvelopeCodec,
    MessageCodec,
)
from couponflow.kernel.envelope import Envelope
from couponflow.messages import Click, EmailRequested, SmsRequested
from tests.samples import make_click

ENTRY_ID = "1790000000250-3"
EMAIL = EmailRequested(to="a@shop.example", subject="s", text="t")
EMAIL_JSON = b'{"type":"email.v1","to":"a@shop.example","subject":"s","text":"t"}'
MESSAGE_ID = "01920000-0000-7000-8000-0000000000e1"

emails = EnvelopeCodec([EmailRequested])


def fields_of(flat: object) -> dict[bytes, bytes]:
    assert isinstance(flat, list | tuple)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_a_click_is_one_readable_field() -> None:
    codec = MessageCodec(Click)
    fields = fields_of(codec.encode(make_click()))

    assert list(fields) == [b"message"]
    assert json.loads(fields[b"message"])["type"] == "click.v1"
    assert codec.decode(ENTRY_ID, fields) == make_click()


@given(
    attempt=st.integers(1, 10**6),
    handover=st.integers(0, HANDOVER_MAX),
    published_at=st.floats(0, 1e11),
    lapsed=st.booleans(),
    text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=50),
)
def test_an_envelope_comes_back_as_it_went(
    attempt: int, handover: int, published_at: float, lapsed: bool, text: str
) -> None:
    envelope = Envelope(
        message_id=MESSAGE_ID,
        message=EmailRequested(to="a@b", subject="s", text=text),
        correlation_id=str(uuid.UUID(int=attempt)),
        published_at=published_at,
        attempt=attempt,
        handover=handover,
        lapsed=lapsed,
    )
    assert emails.decode(ENTRY_ID, fields_of(emails.encode(envelope))) == envelope


def test_a_message_alone_is_enough_and_always_the_same_message() -> None:
    envelope = emails.decode(ENTRY_ID, {b"message": EMAIL_JSON})

    assert envelope.message == EMAIL
    assert str(uuid.UUID(envelope.message_id)) == envelope.message_id
    assert envelope.correlation_id == envelope.message_id
    assert envelope.published_at == 1_790_000_000.25
    assert (envelope.attempt, envelope.handover, envelope.lapsed) == (1, 0, False)
    assert emails.decode(ENTRY_ID, {b"message": EMAIL_JSON}) == envelope
    other = emails.decode("1790000000250-4", {b"message": EMAIL_JSON})
    assert other.message_id != envelope.message_id


def test_fields_nobody_knows_are_nobodys_concern() -> None:
    fields = {b"message": EMAIL_JSON, b"x": b"\xff", b"id": MESSAGE_ID.encode()}

    assert emails.decode(ENTRY_ID, fields).message_id == MESSAGE_ID


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no field `message`"),
        ({b"Message": EMAIL_JSON}, "no field `message`"),
        ({b"message": b"{"}, r"not the JSON .*\(email.v1\)"),
        ({b"message": b"\xff\xfe"}, "not the JSON"),
        ({b"message": EMAIL_JSON.replace(b"email.v1", b"sms.v1")}, "sms.v1"),
        ({b"message": EMAIL_JSON.replace(b'"type":"email.v1",', b"")}, "type"),
        ({b"message": EMAIL_JSON.replace(b"a@shop.example", b"nobody")}, "regex"),
        ({b"message": EMAIL_JSON.replace(b'"s"', b"7")}, "subject"),
        ({b"message": EMAIL_JSON + b" " * MAX_ENTRY_BYTES}, "larger than 1048576"),
        ({b"message": EMAIL_JSON, b"id": b"7"}, "`id` is not a UUID"),
        ({b"message": EMAIL_JSON, b"id": MESSAGE_ID.upper().encode()}, "`id` is not a UUID"),
        ({b"message": EMAIL_JSON, b"attempt": b"0"}, "`attempt`"),
        ({b"message": EMAIL_JSON, b"attempt": b"1e3"}, "`attempt`"),
        ({b"message": EMAIL_JSON, b"handover": b"-1"}, "`handover`"),
        ({b"message": EMAIL_JSON, b"published_at": b"nan"}, "`published_at`"),
        ({b"message": EMAIL_JSON, b"published_at": b"soon"}, "`published_at`"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(
    fields: dict[bytes, bytes], reason: str
) -> None:
    with pytest.raises(EntryMalformed, match=reason):
        emails.decode(ENTRY_ID, fields)


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=200)), st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail_otherwise(
    fields: dict[bytes, bytes], message: bytes
) -> None:
    for codec in (emails, MessageCodec(Click)):
        with pytest.raises(EntryMalformed):
            codec.decode(ENTRY_ID, {**fields, b"message": message})


def test_the_types_of_an_envelope_are_of_one_channel() -> None:
    with pytest.raises(ValueError, match="not of one channel"):
        EnvelopeCodec([EmailRequested, SmsRequested])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"order-7", "order-7"),
        ("\u00e9t\u00e9".encode(), "\u00e9t\u00e9"),
        (b"\xff\x00", "\ufffd\ufffd"),
        (b"x" * 1000, "x" * 500),
    ],
)
def test_any_text_may_name_the_story(written: bytes, read: str) -> None:
    fields = {b"message": EMAIL_JSON, b"correlation_id": written}
    assert emails.decode(ENTRY_ID, fields).correlation_id == read
