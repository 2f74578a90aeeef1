import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.admin.submissions import (
    IdempotentId,
    Submission,
    SubmissionOptions,
    decode_message,
    idempotent_id,
    message_types_of,
    parse_moment,
)
from couponflow.kernel.api import ProblemError
from couponflow.kernel.identifiers import is_canonical_uuid
from couponflow.messages import CHANNELS, EmailDeliveryReported, Message, SmsRequested

SMS = SmsRequested(to="+919876543210", text="hello")
KEYS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1)


def id_of(
    key: str = "k",
    *,
    actor: str = "api:x",
    message: Message = SMS,
    options: SubmissionOptions | None = None,
) -> IdempotentId:
    submission = Submission(
        message=message, options=options or SubmissionOptions(), actor=actor, idempotency_key=key
    )
    return idempotent_id(submission, key)


@given(KEYS, KEYS, KEYS)
def test_an_id_is_a_uuid_between_its_bounds(key: str, actor: str, text: str) -> None:
    made = id_of(key, actor=actor, message=msgspec.structs.replace(SMS, text=text))
    for each in (made.message_id, made.low, made.high):
        assert is_canonical_uuid(each)
        assert (uuid.UUID(each).version, uuid.UUID(each).variant) == (8, uuid.RFC_4122)
    assert made.low <= made.message_id <= made.high
    assert -(2**63) <= made.lock < 2**63
    assert made == id_of(key, actor=actor, message=msgspec.structs.replace(SMS, text=text))


@given(KEYS, KEYS, KEYS, KEYS)
def test_who_and_with_which_key_makes_the_bounds(
    key: str, other_key: str, actor: str, other_actor: str
) -> None:
    same = (key, actor) == (other_key, other_actor)
    first, second = id_of(key, actor=actor), id_of(other_key, actor=other_actor)
    assert (first.low == second.low) == same
    assert (first.lock == second.lock) == same


@pytest.mark.parametrize(
    "other",
    [
        id_of(message=SmsRequested(to=SMS.to, text="bye")),
        id_of(options=SubmissionOptions(available_at=1.0)),
        id_of(options=SubmissionOptions(dedup_key="1.0")),
        id_of(options=SubmissionOptions(dedup_key="None")),
    ],
)
def test_what_is_sent_makes_the_rest(other: IdempotentId) -> None:
    assert (other.low, other.high, other.lock) == (id_of().low, id_of().high, id_of().lock)
    assert other.message_id != id_of().message_id


@given(st.sampled_from(sorted(CHANNELS)), st.binary(max_size=100) | st.text().map(str.encode))
def test_whatever_is_no_message_is_refused(channel: str, body: bytes) -> None:
    with pytest.raises(ProblemError) as refused:
        decode_message(body, message_types_of(channel, CHANNELS))
    assert refused.value.status in (400, 422)


@given(st.text().filter(lambda name: name not in CHANNELS))
def test_an_unknown_channel_is_not_found(channel: str) -> None:
    with pytest.raises(ProblemError) as refused:
        message_types_of(channel, CHANNELS)
    assert refused.value.status == 404
    assert refused.value.detail.endswith(
        "there are: cashback, clicks, emails, orders, sms, webhooks"
    )


def test_a_message_is_decoded_with_and_without_its_type() -> None:
    encoded = msgspec.json.encode(SMS)
    bare = encoded.replace(b'"type":"sms.v1",', b"")
    assert bare != encoded
    assert decode_message(encoded, (SmsRequested,)) == decode_message(bare, (SmsRequested,)) == SMS


def test_the_type_says_which_of_a_channels_messages_is_meant() -> None:
    report = {"provider": "sendgrid", "state": "delivered", "occurred_at": 1}
    emails = CHANNELS["emails"]
    body = msgspec.json.encode({**report, "type": "email_delivery.v1"})
    assert isinstance(decode_message(body, emails), EmailDeliveryReported)
    with pytest.raises(ProblemError, match="provider"):
        decode_message(msgspec.json.encode(report), emails)
    for wrong in ("sms.v1", 7, None):
        with pytest.raises(ProblemError):
            decode_message(msgspec.json.encode({**report, "type": wrong}), emails)


@pytest.mark.parametrize("text", ["2030-01-31T18:30:00+05:30", "2030-01-31T18:30:00 05:30"])
def test_a_plus_sign_may_have_become_a_space(text: str) -> None:
    assert parse_moment(text) == parse_moment("2030-01-31T13:00:00Z") == 1_896_094_800.0
