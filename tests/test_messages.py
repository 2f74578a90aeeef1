import msgspec
import pytest

from couponflow.messages import (
    CHANNELS,
    Click,
    EmailDeliveryReported,
    EmailRequested,
    Message,
    SmsRequested,
    message_decoder,
)

CLICK = Click(
    click_id="0199e0f2-0000-7000-8000-000000000001",
    merchant_id="0199e0f2-0000-7000-8000-000000000002",
    offer_id="0199e0f2-0000-7000-8000-000000000003",
    user_id="0199e0f2-0000-7000-8000-000000000004",
    clicked_at=1_790_000_000.25,
    ip="192.0.2.1",
    user_agent="Mozilla/5.0",
    referer="https://example.com/",
    verdict="human",
)

# What is on disk and on other machines already: a change here breaks their readers.
CLICK_JSON = (
    b'{"type":"click.v1"'
    b',"click_id":"0199e0f2-0000-7000-8000-000000000001"'
    b',"merchant_id":"0199e0f2-0000-7000-8000-000000000002"'
    b',"offer_id":"0199e0f2-0000-7000-8000-000000000003"'
    b',"user_id":"0199e0f2-0000-7000-8000-000000000004"'
    b',"clicked_at":1790000000.25,"ip":"192.0.2.1","user_agent":"Mozilla/5.0"'
    b',"referer":"https://example.com/","verdict":"human"}'
)


def test_a_click_is_written_as_other_programs_know_it() -> None:
    assert msgspec.json.encode(CLICK) == CLICK_JSON


def test_a_written_click_is_read_back_whole() -> None:
    assert msgspec.json.decode(CLICK_JSON, type=Click) == CLICK


def test_a_field_added_by_a_newer_version_does_not_stop_an_older_one() -> None:
    newer = CLICK_JSON.removesuffix(b"}") + b',"country":"IN"}'
    assert msgspec.json.decode(newer, type=Click) == CLICK


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"click.v1", b"click.v2"),
        (b'"verdict":"human"', b'"verdict":"martian"'),
        (b'"ip":"192.0.2.1",', b""),
        (b'"clicked_at":1790000000.25', b'"clicked_at":"yesterday"'),
    ],
    ids=["another version", "unknown verdict", "missing field", "wrong type"],
)
def test_what_is_not_a_click_is_refused(old: bytes, new: bytes) -> None:
    assert old in CLICK_JSON
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(CLICK_JSON.replace(old, new), type=Click)


def test_every_message_is_on_the_channel_it_names() -> None:
    assert list(CHANNELS) == ["clicks", "emails", "sms", "webhooks", "cashback", "orders"]
    for channel, messages in CHANNELS.items():
        assert messages
        for message in messages:
            assert issubclass(message, Message)
            assert message.channel == channel


def test_a_channel_tells_its_messages_apart_by_their_tags() -> None:
    tags = [each.__struct_config__.tag for types in CHANNELS.values() for each in types]
    assert len(tags) == len(set(tags))
    decoder = message_decoder(CHANNELS["emails"])
    assert decoder.decode(msgspec.json.encode(EMAIL)) == decoded(EMAIL)
    report = EmailDeliveryReported(provider="sendgrid", state="bounced", occurred_at=1.0)
    assert decoder.decode(msgspec.json.encode(report)) == report
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(msgspec.json.encode(SMS))


def test_a_message_cannot_be_changed_once_said() -> None:
    field = "verdict"
    with pytest.raises(AttributeError):
        setattr(CLICK, field, "bot")
    assert CLICK.verdict == "human"


EMAIL = {"type": "email.v1", "to": "a@b.example", "subject": "Hello", "text": "plain"}
SMS = {"type": "sms.v1", "to": "+919812345678", "text": "short"}
CONTROLS = ["\n", "\r", "\r\n", "\0", "\t", "\x1b", "\x7f", "\x85"]


def decoded(message: dict[str, str]) -> Message:
    channel = {"email.v1": EmailRequested, "sms.v1": SmsRequested}[message["type"]]
    return msgspec.json.decode(msgspec.json.encode(message), type=channel)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize("field", ["to", "subject"])
@pytest.mark.parametrize("place", [0, 1, -1, 99], ids=["first", "second", "last but one", "last"])
def test_no_header_of_an_email_holds_a_control_character(
    field: str, control: str, place: int
) -> None:
    assert decoded(EMAIL) == EmailRequested(to="a@b.example", subject="Hello", text="plain")
    good = EMAIL[field]
    with pytest.raises(msgspec.ValidationError, match=rf"`\$\.{field}`"):
        decoded({**EMAIL, field: good[:place] + control + good[place:]})


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_no_number_holds_a_control_character(control: str) -> None:
    assert decoded(SMS) == SmsRequested(to="+919812345678", text="short")
    with pytest.raises(msgspec.ValidationError, match=r"`\$\.to`"):
        decoded({**SMS, "to": SMS["to"] + control})


@pytest.mark.parametrize(
    ("message", "field"), [(EMAIL, "text"), (EMAIL, "html"), (SMS, "text")], ids=str
)
def test_texts_hold_lines_and_tabs_but_no_nul(message: dict[str, str], field: str) -> None:
    kept = "one\r\n\ttwo\n"
    assert getattr(decoded({**message, field: kept}), field) == kept
    for nul in ("\0", "a\nb\0", "\0\n"):
        with pytest.raises(msgspec.ValidationError, match=rf"`\$\.{field}`"):
            decoded({**message, field: nul})
