"""The segment format: what is written is read, and damage costs no more than what it hit."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.journal_segment import (
    MAX_PAYLOAD_BYTES,
    SEGMENT_START,
    Budget,
    Damage,
    FileSource,
    MapSource,
    SegmentReader,
    allocate_file,
    encode_header,
    encode_record,
    header_is_broken,
    make_segment,
    parse_records,
)

PAYLOADS = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8)
BUDGET_BYTES = 1 << 40


class BytesSource:
    """A segment's bytes held in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def close(self) -> None:
        """Nothing is open."""


def read_all(content: bytes) -> tuple[list[bytes], SegmentReader]:
    reader = SegmentReader(BytesSource(content), 0)
    payloads = reader.read(len(content), 1000, Budget(BUDGET_BYTES))
    assert reader.offset == len(content)
    return payloads, reader


def test_a_record_is_magic_length_checksum_payload() -> None:
    assert encode_record(b"a click") == b"CFJ1" + bytes.fromhex("07000000 aa96720e") + b"a click"


def test_the_largest_payload_has_64_kib() -> None:
    payload = b"p" * MAX_PAYLOAD_BYTES
    assert parse_records(encode_record(payload), 10) == ([payload], 12 + 65_536)


@pytest.mark.parametrize("length", [0, 65_537])
def test_an_empty_or_too_large_payload_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"has 1 to 65536 bytes, this one has {length}"):
        encode_record(b"p" * length)


@given(PAYLOADS, st.integers(min_value=1, max_value=9))
def test_parsing_stops_at_the_number_asked_for(payloads: list[bytes], asked: int) -> None:
    window = b"".join(map(encode_record, payloads)) + bytes(20)
    taken = payloads[:asked]
    assert parse_records(window, asked) == (taken, sum(12 + len(payload) for payload in taken))


def test_a_header_is_broken_by_any_flipped_byte() -> None:
    header = encode_header(7, 1_790_000_000.5)
    assert len(header) == SEGMENT_START
    assert not header_is_broken(header, 7)
    for at in range(SEGMENT_START):
        assert header_is_broken(flipped(header, at, 0xFF), 7)


def test_a_header_of_another_segment_is_broken() -> None:
    assert header_is_broken(encode_header(7, 0.0), 8)


@pytest.mark.parametrize("header", [b"", bytes(31), bytes(32), b"CFJH"])
def test_a_header_never_finished_is_not_broken(header: bytes) -> None:
    assert not header_is_broken(header, 7)


def flipped(content: bytes, at: int, mask: int) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


@given(PAYLOADS, st.data())
def test_zeros_from_any_byte_on_lose_only_what_they_hit(
    payloads: list[bytes], data: st.DataObject
) -> None:
    records = [encode_record(payload) for payload in payloads]
    content = b"".join(records)
    cut = data.draw(st.integers(min_value=0, max_value=len(content)))
    torn = content[:cut] + bytes(len(content) - cut + 50)
    whole = [
        p for p, end in zip(payloads, ends(records), strict=True) if torn[:end] == content[:end]
    ]
    found, reader = read_all(torn)
    assert found == whole
    assert reader.records_end == sum(12 + len(payload) for payload in whole)
    rest = torn[reader.records_end :].rstrip(b"\0")
    assert reader.damage == ([Damage(reader.records_end, len(rest), torn=True)] if rest else [])


def ends(records: list[bytes]) -> list[int]:
    return [sum(map(len, records[: index + 1])) for index in range(len(records))]


@given(PAYLOADS, st.integers(min_value=1, max_value=255), st.data())
def test_a_flipped_byte_loses_only_its_record(
    payloads: list[bytes], mask: int, data: st.DataObject
) -> None:
    records = [encode_record(payload) for payload in payloads]
    at = data.draw(st.integers(min_value=0, max_value=sum(map(len, records)) - 1))
    hit = next(index for index, end in enumerate(ends(records)) if at < end)
    found, reader = read_all(flipped(b"".join(records), at, mask) + bytes(50))
    assert found == payloads[:hit] + payloads[hit + 1 :]
    assert [(d.offset, d.torn) for d in reader.damage] == [
        (sum(map(len, records[:hit])), hit == len(records) - 1)
    ]


def test_a_zeroed_stretch_in_the_middle_is_damage() -> None:
    first, last = encode_record(b"first"), encode_record(b"last")
    found, reader = read_all(first + bytes(700_000) + last + bytes(700_000))
    assert found == [b"first", b"last"]
    assert reader.damage == [Damage(len(first), 700_000, torn=False)]


@pytest.mark.parametrize("shift", range(8))
def test_a_record_across_two_search_windows_is_found(shift: int) -> None:
    gap = 256 * 1024 - 4 + shift
    found, reader = read_all(b"x" * gap + encode_record(b"found"))
    assert found == [b"found"]
    assert reader.damage == [Damage(0, gap, torn=False)]


def test_a_search_goes_on_where_its_budget_ended() -> None:
    content = bytes(1_000_000) + encode_record(b"found")
    reader = SegmentReader(BytesSource(content), 0)
    calls = 0
    found: list[bytes] = []
    while not found:
        found = reader.read(len(content), 10, Budget(1))
        calls += 1
    assert found == [b"found"]
    assert calls == 5
    assert reader.damage == [Damage(0, 1_000_000, torn=False)]


def test_a_record_finished_during_the_search_is_no_damage() -> None:
    first, second = encode_record(b"first"), encode_record(b"second")

    class LiveSource(BytesSource):
        def read(self, offset: int, length: int) -> bytes:
            answer = super().read(offset, length)
            self.content = first + second
            return answer

    reader = SegmentReader(LiveSource(bytes(len(first + second))), 0)
    assert reader.read(len(first + second), 10, Budget(BUDGET_BYTES)) == [b"first", b"second"]
    assert reader.damage == []


def test_a_file_that_shrank_ends_early() -> None:
    reader = SegmentReader(BytesSource(encode_record(b"here")), 0)
    assert reader.read(5_000, 10, Budget(BUDGET_BYTES)) == [b"here"]
    assert (reader.offset, reader.records_end, reader.damage) == (5_000, 16, [])


def test_records_before_an_unreadable_byte_are_returned_first() -> None:
    class FailingSource(BytesSource):
        def read(self, offset: int, length: int) -> bytes:
            if offset > 0:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(offset, length)

    reader = SegmentReader(FailingSource(encode_record(b"here")), 0)
    assert reader.read(100, 10, Budget(BUDGET_BYTES)) == [b"here"]
    with pytest.raises(OSError, match="Input/output error"):
        reader.read(100, 10, Budget(BUDGET_BYTES))


def test_a_new_segment_is_allocated_and_readable_through_map_and_file(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    segment = make_segment(path, 3, 5_000, 1.0, allocate_file)
    record = encode_record(b"a click")
    segment.map[SEGMENT_START : SEGMENT_START + len(record)] = record
    source = FileSource(path)
    expected = encode_header(3, 1.0) + record + bytes(5_000 - SEGMENT_START - len(record))
    assert source.size == 5_000
    assert source.read(0, 9_999) == expected
    assert MapSource(segment).read(0, 9_999) == expected
    assert path.stat().st_mode & 0o777 == 0o600
    source.close()
    segment.close()


def test_without_fallocate_the_file_is_written_with_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    segment = make_segment(tmp_path / "segment", 1, 600_000, 1.0, allocate_file)
    segment.close()
    content = (tmp_path / "segment").read_bytes()
    assert content == encode_header(1, 1.0) + bytes(600_000 - SEGMENT_START)


def test_a_segment_that_cannot_be_allocated_leaves_no_file(tmp_path: Path) -> None:
    def allocate(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        make_segment(tmp_path / "segment", 1, 5_000, 1.0, allocate)
    assert list(tmp_path.iterdir()) == []
