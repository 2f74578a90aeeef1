import pytest

from couponflow.webhooks.contract import EventUnreadable
from couponflow.webhooks.sources.postback_parameters import (
    amount,
    currency,
    folded,
    parameters_of,
    present,
)

FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("query", "content_type", "body", "parameters"),
    [
        ("a=1&b=x%20y+z&a=2&c=", "", b"", {"a": "1", "b": "x y z"}),
        ("a=1", FORM, b"a=2&b=3", {"a": "2", "b": "3"}),
        ("a=1", "application/json", b"", {"a": "1"}),
        ("", "application/json", b'{"a": 1, "b": "x", "c": null}', {"a": "1", "b": "x", "c": ""}),
        ("", FORM, b'\xef\xbb\xbf [{"a": true}] ', {"a": "true"}),
        # As they are written, digit for digit.
        (
            "",
            "application/json",
            b'{"a": 12345678901234567890123, "b": 0.10, "c": 7.7810000000000000001}',
            {"a": "12345678901234567890123", "b": "0.10", "c": "7.7810000000000000001"},
        ),
        (
            "b=4",
            FORM,
            b"Push=%7B%22a%22%3A%201.50%2C%20%22b%22%3A%20%222%22%7D&a=0",
            {"Push": '{"a": 1.50, "b": "2"}', "a": "0", "b": "2"},
        ),
        ("a=%7Bp1%7D", "", b"", {"a": "{p1}"}),
        ("a=\xff", FORM, b"b=\xff&c=%ff", {"a": "\xff", "b": "\ufffd", "c": "\ufffd"}),
    ],
)
def test_all_ways_to_send_them_give_one_flat_dict(
    query: str, content_type: str, body: bytes, parameters: dict[str, str]
) -> None:
    assert parameters_of(query, content_type, body) == parameters


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"a=1"),
        ("application/json; charset=utf-8", b'"a"'),
        ("", b"{"),
        (FORM, b"[]"),
        (FORM, b'[{"a": 1}, {"a": 2}]'),
        (FORM, b"&a=1" * 1_001),
    ],
)
def test_what_is_not_one_postback_is_unreadable(content_type: str, body: bytes) -> None:
    with pytest.raises(EventUnreadable):
        parameters_of("", content_type, body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "null",
        "None",
        "NULL",
        "[[[subid]]]",
        "{p1}",
        "{{p1}}",
        "!!!clickref!!!",
        "%7Bp1%7D",
        "%5B%5B%5Bsubid%5D%5D%5D",
    ],
)
def test_a_placeholder_says_nothing(text: str) -> None:
    assert present({"a": text}, ["a"]) == ""
    assert present({"a": text, "b": " x "}, ["a", "b"]) == "x"


@pytest.mark.parametrize("text", ["0", "a", "nullify", "[[x]]", "{a}b", "100%25"])
def test_anything_else_says_what_it_says(text: str) -> None:
    assert present({"a": text, "b": "y"}, ["a", "b"]) == text


@pytest.mark.parametrize("text", ["Invoice Raised", "invoice_raised", " INVOICE - raised\t"])
def test_statuses_are_compared_folded(text: str) -> None:
    assert folded(text) == "invoice raised"


@pytest.mark.parametrize(
    ("text", "decimal"),
    [
        ("124.95", "124.95"),
        ("7.781", "7.781"),
        ("-25.00", "-25.00"),
        ("0", "0"),
        ("1,234.50", "1234.50"),
        ("12,34,567.8", "1234567.8"),
        ("1 234 567", "1234567"),
        ("999999999999999.999999", "999999999999999.999999"),
        # The same in other spellings.
        (".5", "0.5"),
        ("1.", "1"),
        ("+1", "1"),
        ("1e2", "100"),
        ("1.5E-1", "0.15"),
        ("000000000000000000124.95", "124.95"),
    ],
)
def test_an_amount_is_kept_exactly(text: str, decimal: str) -> None:
    assert amount(text) == decimal


@pytest.mark.parametrize(
    ("text", "decimal"),
    [
        ("124.9500000000", "124.950000"),
        ("7.7810000000000000001", "7.781000"),
        ("-1.2345678", "-1.234568"),
        ("1e-300", "0.000000"),
        ("1,234.12345678", "1234.123457"),
    ],
)
def test_an_amount_keeps_six_places(text: str, decimal: str) -> None:
    assert amount(text) == decimal


@pytest.mark.parametrize(
    "text",
    [
        "124,95",
        "1.234,50",
        "1,23",
        "1,2345",
        "NaN",
        "-Infinity",
        "sNaN123",
        "Rs 5",
        "--1",
        ".",
        "",
        "1_000",
        "1e",
        "1e999",
        "1e9999999999",
        "1" * 16,
        "999999999999999.9999999",
        "0" * 65,
        "1,234" + ",567" * 30,
        "\u0661",
    ],
)
def test_what_can_be_no_amount_is_none(text: str) -> None:
    assert amount(text) is None


@pytest.mark.parametrize(
    ("text", "code"), [("inr", "INR"), ("USD", "USD"), ("", None), ("Rs", None), ("\u20acur", None)]
)
def test_a_currency_is_three_letters(text: str, code: str | None) -> None:
    assert currency(text) == code
