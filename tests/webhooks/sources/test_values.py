import pytest

from couponflow.webhooks.sources.values import (
    clipped,
    moment_of,
    name_of,
    order_number_in,
    part_of,
    parts_of,
    text_of,
    uuid_of,
)

UUID = "0193a3b0-0000-7000-8000-00000000000a"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (7, "7"),
        (-1.5, "-1.5"),
        (True, "true"),
        (False, "false"),
        (None, ""),
        ([1], ""),
        ({"a": 1}, ""),
    ],
)
def test_scalars_have_a_text(value: object, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("value", "name"),
    [(" a b\n", "a b"), (12, "12"), ("", None), ("a\0", None), ("a\nb", None), ("a" * 201, None)],
)
def test_a_name_is_one_line(value: object, name: str | None) -> None:
    assert name_of(value) == name


@pytest.mark.parametrize("value", [None, 7, "a", [], ["a"], {}, {"b": 1}])
def test_what_is_no_object_has_no_parts(value: object) -> None:
    assert part_of(value, "a") is None
    assert part_of({"a": value}, "a") == value


@pytest.mark.parametrize("value", [None, 7, "a", {}, {"a": 1}])
def test_what_is_no_list_holds_nothing(value: object) -> None:
    assert parts_of(value) == []
    assert parts_of([value]) == [value]


@pytest.mark.parametrize(
    ("notes", "others", "number"),
    [
        ({"order_id": "n-1", "order_number": "n-2"}, ["r-1"], "n-1"),
        ({"order_id": " n-1\n"}, [], "n-1"),
        ({"order_id": "a\nb", "order_number": 7}, ["r-1"], "7"),
        ({"order_id": "x" * 201}, [None, "", " r-1 ", "r-2"], "r-1"),
        ({"order_id": True, "order_number": 1.5}, [["r-1"], "r-2"], "r-2"),
        ([], ["a\0b"], None),
        (None, [], None),
    ],
)
def test_the_number_of_an_order_is_the_first_that_can_be_one(
    notes: object, others: list[object], number: str | None
) -> None:
    assert order_number_in(notes, *others) == number


@pytest.mark.parametrize("value", ["", UUID.upper(), f" {UUID}", UUID.replace("-", ""), 7, None])
def test_only_the_canonical_text_is_a_uuid(value: object) -> None:
    assert uuid_of(value) is None
    assert uuid_of(UUID) == UUID


def test_a_text_is_clipped() -> None:
    assert clipped("\0" + "a" * 3_000) == "a" * 2_000
    assert clipped("half \ud83d a character") == "half ? a character"


@pytest.mark.parametrize(
    ("value", "offset", "moment"),
    [
        (1764548000, None, 1764548000),
        ("1764548000", 330, 1764548000),
        (1764548000123, None, 1764548000.123),
        ("2025-12-01T00:13:20Z", 330, 1764548000),
        ("2025-12-01T05:43:20+05:30", None, 1764548000),
        (" 2025-12-01 05:43:20 ", 330, 1764548000),
        ("2025-12-01 05:43:20", None, None),
        ("1969-12-31T23:59:59Z", None, None),
        ("0001-01-01T00:00:00+23:59", None, None),
        ("9999-12-31T23:59:59Z", None, None),
        ("9" * 5_000, None, None),
        (-1, None, None),
        ("soon", 0, None),
        (None, 0, None),
        ("\u0661", 0, None),
    ],
)
def test_times_are_read_in_seconds_or_iso_8601(
    value: object, offset: int | None, moment: float | None
) -> None:
    assert moment_of(value, offset) == moment
