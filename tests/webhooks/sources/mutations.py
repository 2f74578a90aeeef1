"""Deliveries that are right but for a byte, events that are right but for a value, and anything."""

import copy
from collections.abc import Sequence
from typing import cast

import msgspec
import pytest
from hypothesis import strategies as st

from couponflow.messages import CHANNELS, message_decoder
from couponflow.webhooks.contract import Delivery, EventUnreadable, Source, StoredEvent

NOW = 1_700_000_100.0
WEBHOOK_ID = "0199e0f2-0000-7000-8000-0000000000aa"
DEEP = b'{"x":' + b"[" * 100_000

Path = tuple[str | int, ...]


@st.composite
def one_byte_off(draw: st.DrawFn, right: bytes) -> bytes:
    """The same bytes, but for one of them."""
    wrong = bytearray(right)
    wrong[draw(st.integers(0, len(right) - 1))] ^= draw(st.integers(1, 255))
    return bytes(wrong)


@st.composite
def one_character_off(draw: st.DrawFn, right: str) -> str:
    """The same header, but for one byte of it."""
    return draw(one_byte_off(right.encode())).decode("latin-1")


def anything(
    header_names: Sequence[str], plausible: Sequence[str] = ()
) -> st.SearchStrategy[Delivery]:
    """Deliveries of nobody in particular, some with headers that look right."""
    values = st.one_of(st.text(max_size=80), st.sampled_from([*plausible, "", "=", "t=,v1=", "."]))
    return st.builds(
        Delivery,
        method=st.sampled_from(["GET", "POST"]),
        token=st.text(max_size=20),
        query=st.text(max_size=40),
        headers=st.dictionaries(st.sampled_from([*header_names, "x-other"]), values),
        body=st.one_of(st.binary(max_size=80), st.sampled_from([DEEP, b"[]", b"{}", b"null"])),
        received_at=st.floats(0, 1e10),
    )


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["null", "\0", "x" * 300, "2025-12-01T10:00:00Z", "0001-01-01T00:00+23:59"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@st.composite
def one_value_off(draw: st.DrawFn, right: object) -> bytes:
    """The same JSON, but with something else in one place, or nothing."""
    wrong = copy.deepcopy(right)
    *towards, last = draw(st.sampled_from(_paths(wrong)))
    holder = _holder_at(wrong, towards)
    if draw(st.booleans()):
        holder[last] = draw(JSON_VALUES)
    else:
        del holder[last]
    return msgspec.json.encode(wrong)


def _paths(value: object) -> list[Path]:
    if isinstance(value, dict):
        items: list[tuple[str | int, object]] = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return []
    return [path for key, each in items for path in [(key,), *((key, *p) for p in _paths(each))]]


def _holder_at(value: object, path: Sequence[str | int]) -> dict[str | int, object]:
    """What is at a path of a JSON document: an object, or a list, which is indexed alike."""
    for key in path:
        value = cast("dict[str | int, object]", value)[key]
    return cast("dict[str | int, object]", value)


def changed(right: object, path: Path, value: object) -> bytes:
    """The same JSON with another value in one place."""
    wrong = copy.deepcopy(right)
    _holder_at(wrong, path[:-1])[path[-1]] = value
    return msgspec.json.encode(wrong)


def without(right: object, path: Path) -> bytes:
    """The same JSON without one place."""
    wrong = copy.deepcopy(right)
    del _holder_at(wrong, path[:-1])[path[-1]]
    return msgspec.json.encode(wrong)


def stored(body: bytes) -> StoredEvent:
    return StoredEvent(
        webhook_id=WEBHOOK_ID,
        event_type="",
        event_id="event-1",
        method="POST",
        query="",
        headers={},
        body=body,
        received_at=NOW,
    )


def check_that_nothing_is_raised(source: Source, delivery: Delivery) -> None:
    """It is refused with a reason, and named and shown all the same."""
    refused = source.verify(delivery)
    assert refused is not None
    assert refused.reason in ("bad-signature", "stale")
    identity = source.identify(delivery)
    assert len(identity.event_id) <= 200
    assert len(identity.event_type) <= 200
    assert isinstance(source.public_query(delivery), str)


def check_that_messages_fit_or_the_event_is_unreadable(source: Source, body: bytes) -> None:
    try:
        translated = source.translate(stored(body))
    except EventUnreadable:
        return
    for each in translated:
        decoder = message_decoder(CHANNELS[each.message.channel])
        assert decoder.decode(msgspec.json.encode(each.message)) == each.message


def assert_unreadable(source: Source, body: bytes, *, saying: str = ".") -> None:
    with pytest.raises(EventUnreadable, match=saying):
        source.translate(stored(body))
