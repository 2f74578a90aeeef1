"""CSV records: line numbers, damage and its bounds."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from couponflow.catalogue.csv_records import MAX_RECORD_CHARACTERS, CsvRecord, read_records


def records_of(content: bytes) -> list[CsvRecord]:
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", errors="surrogateescape", newline="")
    with text:
        return list(read_records(text))


def good(line: int, *fields: str) -> CsvRecord:
    return CsvRecord(line, list(fields), None, False)


def places(records: list[CsvRecord]) -> list[tuple[int, bool]]:
    return [(record.line, record.broken) for record in records]


def test_line_numbers_are_those_of_the_file_whatever_the_line_ends() -> None:
    assert records_of(b"a,b\r\n\nc,d\re,f") == [
        good(1, "a", "b"),
        good(3, "c", "d"),
        good(4, "e", "f"),
    ]


def test_a_quoted_field_over_several_lines_is_one_record_on_its_first_line() -> None:
    assert records_of(b'a,"b\n\nc ""x"""\nd,e\n') == [good(1, "a", 'b\n\nc "x"'), good(4, "d", "e")]


def test_a_quote_inside_an_unquoted_field_is_text() -> None:
    assert records_of(b'a,43" TV\n') == [good(1, "a", '43" TV')]


def test_a_quote_that_never_closes_costs_its_own_line_only() -> None:
    records = records_of(b'a,"b\nc,d\ne,f\n')
    assert places(records) == [(1, True), (2, False), (3, False)]
    assert records[0].fields == ('a,"b',)
    assert records[0].problem is not None
    assert "a quote that does not close" in records[0].problem
    assert records[1:] == [good(2, "c", "d"), good(3, "e", "f")]


def test_a_quote_that_meets_the_next_records_quote_costs_its_own_line_only() -> None:
    records = records_of(b'a,"b\nc,"d"\ne,f\n')
    assert places(records) == [(1, True), (2, False), (3, False)]
    assert records[1:] == [good(2, "c", "d"), good(3, "e", "f")]


def test_lines_given_back_are_read_in_their_order_again() -> None:
    records = records_of(b'"a\n"",b\n"c\nd\n')
    assert places(records) == [(1, True), (2, False), (3, True), (4, False)]
    assert records[1] == good(2, "", "b")


def test_bytes_that_are_not_utf8_are_named_and_kept() -> None:
    assert records_of(b"a,\xff\xfe\n") == [
        CsvRecord(
            1,
            ["a", "\udcff\udcfe"],
            "line holds the byte 0xff, which is not UTF-8: save the file as UTF-8",
            False,
        )
    ]


def test_bytes_that_are_not_utf8_are_found_in_quoted_fields_too() -> None:
    [record] = records_of(b'a,"x\n\xe9"\n')
    assert record.problem == "line holds the byte 0xe9, which is not UTF-8: save the file as UTF-8"


def test_a_nul_byte_is_a_problem_of_its_line() -> None:
    assert records_of(b"a,b\x00c\n") == [
        CsvRecord(1, ["a", "b\0c"], "line holds a NUL byte", False)
    ]


def test_an_endless_line_is_one_bad_record_in_bounded_memory() -> None:
    records = records_of(b"a,b\n" + b"x" * (3 * MAX_RECORD_CHARACTERS + 7) + b"\nc,d\n")
    assert places(records) == [(1, False), (2, True), (3, False)]
    assert records[1].problem == "line has 65,536 characters or more"
    assert len(records[1].fields[0]) == 200


def test_a_quoted_field_does_not_run_on_for_ever() -> None:
    lines = MAX_RECORD_CHARACTERS // 10
    records = records_of(b'a,"b\n' + b"123456789\n" * lines + b'c"\n')
    assert places(records) == [(1, True), *((line, False) for line in range(2, lines + 3))]


def test_an_endless_line_after_an_open_quote_is_one_record_of_its_own() -> None:
    records = records_of(b'"a\n' + b'x",y' * MAX_RECORD_CHARACTERS + b"\nc,d\n")
    assert places(records) == [(1, True), (2, True), (3, False)]


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2))
)
def test_what_csv_writes_comes_back(rows: list[list[str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    assert [record.fields for record in records_of(stream.getvalue().encode())] == rows


@given(st.text(alphabet="ab,\n\r \u2028\x0b\x85\x1c"))
def test_without_quotes_the_fields_are_those_of_the_csv_module(text: str) -> None:
    expected = [fields for fields in csv.reader(io.StringIO(text, newline="")) if fields]
    assert [record.fields for record in records_of(text.encode())] == expected


@given(
    st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\xff", b"\0", b"\xc3", b"x,y\n"]))
)
def test_any_bytes_are_taken_apart_with_rising_line_numbers(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    lines = [record.line for record in records_of(content)]
    assert lines == sorted(set(lines))
    assert len(lines) <= content.count(b"\n") + content.count(b"\r") + 1
