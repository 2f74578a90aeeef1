"""Rows: what each field takes, and the reason for what it does not."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from couponflow.catalogue.rows import (
    MERCHANT_COLUMNS,
    OFFER_COLUMNS,
    USER_COLUMNS,
    MerchantRow,
    OfferRow,
    UserRow,
    parse_merchant,
    parse_offer,
    parse_user,
)

ID = "0197a3c2-7b1e-7c3d-9a2f-0123456789ab"
TEMPLATE = "https://n.example/?s={click_id}&u={url}"
GOOD_MERCHANT = {
    "slug": "mitti-and-co",
    "name": "Mitti & Co",
    "network": "cj",
    "tracking_template": TEMPLATE,
    "fallback_url": "https://mitti.example/sale",
    "cashback_percent": "4.5",
}
GOOD_OFFER = {
    "offer_uuid": ID,
    "merchant_slug": "mitti-and-co",
    "title": "Planters, 20% off",
    "url": "https://mitti.example/planters?a=b",
    "starts_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-02-01T00:00:00Z",
    "active": "true",
}
GOOD_USER = {
    "user_uuid": ID,
    "email": "diya@example.in",
    "mobile": "+919800000001",
    "name": "Diya Patel",
}


def merchant(**fields: str) -> tuple[MerchantRow, list[str]]:
    problems: list[str] = []
    values = GOOD_MERCHANT | fields
    return parse_merchant([values[column] for column in MERCHANT_COLUMNS], ID, problems), problems


def offer(**fields: str) -> tuple[OfferRow, list[str]]:
    problems: list[str] = []
    values = GOOD_OFFER | fields
    return parse_offer([values[column] for column in OFFER_COLUMNS], problems), problems


def user(**fields: str) -> tuple[UserRow, list[str]]:
    problems: list[str] = []
    values = GOOD_USER | fields
    return parse_user([values[column] for column in USER_COLUMNS], problems), problems


def test_good_rows_have_no_problems() -> None:
    assert merchant() == (
        MerchantRow(
            ID,
            "mitti-and-co",
            "Mitti & Co",
            "cj",
            TEMPLATE,
            "https://mitti.example/sale",
            Decimal("4.5"),
        ),
        [],
    )
    assert offer() == (
        OfferRow(
            ID,
            "mitti-and-co",
            "Planters, 20% off",
            "https://mitti.example/planters?a=b",
            datetime(2026, 1, 1, tzinfo=UTC),
            datetime(2026, 2, 1, tzinfo=UTC),
            True,
        ),
        [],
    )
    assert user() == (UserRow(ID, "diya@example.in", "+919800000001", "Diya Patel"), [])


def test_what_may_be_empty_is_none() -> None:
    assert merchant(fallback_url="")[0].fallback_url is None
    row, problems = offer(starts_at="", expires_at=" ", active="")
    assert (row.starts_at, row.expires_at, row.active, problems) == (None, None, True, [])
    assert user(email="", mobile=" ", name=" ") == (UserRow(ID, None, None, None), [])


@pytest.mark.parametrize(
    "text",
    [
        ID,
        ID.upper(),
        f" {ID} ",
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        f"URN:UUID:{ID.upper()}",
    ],
)
def test_a_uuid_in_any_standard_form_is_stored_canonically(text: str) -> None:
    row, problems = offer(offer_uuid=text)
    assert (row.offer_id, problems) == (ID, [])


@pytest.mark.parametrize(
    "text",
    [f"{{{ID}", f"{ID}}}", ID[:-1], ID + "0", ID.replace("-", "", 1), "g" * 32, "\u0661" * 32],
)
def test_what_only_resembles_a_uuid_is_not_one(text: str) -> None:
    assert offer(offer_uuid=text)[1] == [f"offer_uuid {text!r} is not a UUID"]
    assert user(user_uuid=text)[1] == [f"user_uuid {text!r} is not a UUID"]


@given(st.uuids())
def test_every_uuid_is_taken_as_python_writes_it(value: UUID) -> None:
    for text in (str(value), value.hex, value.urn, str(value).upper()):
        assert offer(offer_uuid=text)[0].offer_id == str(value)


@pytest.mark.parametrize("text", ["", "-a", "A-shop", "a shop", "a_shop", "a" * 64, "ä", "a\nb"])
def test_a_slug_that_cannot_stand_in_a_link_is_refused(text: str) -> None:
    [problem] = merchant(slug=text)[1]
    assert problem.startswith(f"slug {text!r}" if len(text) < 60 else "slug 'aaaa")
    assert "is not a slug: 1 to 63 lower-case letters" in problem
    assert offer(merchant_slug=text)[1] == [f"merchant_{problem}"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty: give an address such as https://shop.example/page"),
        ("ftp://shop.example/", "does not start with http:// or https:// (in lower case): 'ftp://"),
        ("javascript:alert(1)", "does not start with http:// or https://"),
        ("//shop.example/", "does not start with http:// or https://"),
        ("https://", "has no host: write it as https://host/path"),
        ("https:///page", "has no host"),
        ("https://shop.example/a b", "holds ' ' at character 23"),
        ("https://shop.example/ ", "holds ' ' at character 22"),
        ("https://shop.example/a\tb", r"holds '\t' at character 23"),
        ("https://shop.example/\r\nX: y", r"holds '\r' at character 22"),
        ("https://shop.example/\x00", r"holds '\x00' at character 22"),
        ("https://shop.example/\x9f", r"holds '\x9f' at character 22"),
        ("https://shop.example/\u2028", r"holds '\u2028' at character 22"),
        ("https://me:secret@shop.example/", "holds credentials (a name before '@'): remove them"),
        ("https://me@shop.example/", "holds credentials"),
        ("https://shop.example\\@evil.example/", "holds credentials"),
        ("https://shop.example:port/", "is not a web address: Port could not be cast"),
        ("https://<b>/", "has '<' in its host '<b>'"),
        ("https://shop.example/" + "a" * 1980, "has 2,001 characters; at most 2,000 are allowed"),
    ],
)
def test_a_url_that_no_shopper_should_be_sent_to_is_refused(text: str, reason: str) -> None:
    [problem] = offer(url=text)[1]
    assert problem.startswith(f"url {reason}")
    if text:
        assert merchant(fallback_url=text)[1][0] == f"fallback_{problem}"


@pytest.mark.parametrize(
    "text",
    [
        "http://shop.example",
        "https://shop.example:8443/?q=1#top",
        "https://[2001:db8::1]/x",
        "https://localhost/",
        "https://shop.example/हिन्दी?q=प्रेम",
        "https://bücher.example/",
        "https://shop.example/a@b?c=%20%zz",
        "https://shop.example/" + "a" * 1979,
    ],
)
def test_a_url_is_stored_as_it_is_written(text: str) -> None:
    row, problems = offer(url=text)
    assert (row.url, problems) == (text, [])


def test_a_fallback_url_goes_into_a_header_and_must_be_ascii() -> None:
    assert merchant(fallback_url="https://shop.example/ü")[1] == [
        "fallback_url holds 'ü', which is not ASCII: percent-encode it"
    ]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-10-18T09:00:00+05:30", datetime(2026, 10, 18, 3, 30, tzinfo=UTC)),
        ("2026-10-18T09:00:00Z", datetime(2026, 10, 18, 9, tzinfo=UTC)),
        ("2026-10-18 09:00", datetime(2026, 10, 18, 9, tzinfo=UTC)),
        ("2026-10-18T09:00:00.123456", datetime(2026, 10, 18, 9, 0, 0, 123456, tzinfo=UTC)),
        ("2026-10-18", datetime(2026, 10, 18, tzinfo=UTC)),
        (" 2026-10-18 ", datetime(2026, 10, 18, tzinfo=UTC)),
    ],
)
def test_times_are_utc_unless_they_say_otherwise(text: str, moment: datetime) -> None:
    row, problems = offer(starts_at=text, expires_at="")
    assert (row.starts_at, problems) == (moment, [])
    assert row.starts_at is not None
    assert row.starts_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text", ["18/10/2026", "tomorrow", "2026-02-30", "2026-10-18T25:00", "0001-01-01T00:00+01:00"]
)
def test_a_time_that_is_none_is_refused(text: str) -> None:
    for column in ("starts_at", "expires_at"):
        assert offer(**{column: text})[1] == [
            f"{column} {text!r} is not an ISO 8601 time such as 2026-10-18T09:00:00+05:30"
        ]


@pytest.mark.parametrize("expires_at", ["2026-01-01", "2025-12-31"])
def test_an_offer_must_start_before_it_expires(expires_at: str) -> None:
    assert offer(expires_at=expires_at)[1] == ["starts_at is not before expires_at"]


@pytest.mark.parametrize(
    ("text", "active"),
    [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False), (" No ", False)],
)
def test_active_is_said_in_several_ways(text: str, active: bool) -> None:
    row, problems = offer(active=text)
    assert (row.active, problems) == (active, [])


def test_active_is_not_guessed() -> None:
    assert offer(active="maybe")[1] == ["active 'maybe' is not true, false, yes, no, 1 or 0"]


@pytest.mark.parametrize("text", ["", "  ", "x" * 501, "a\x07b"])
def test_a_title_is_there_and_short_and_printable(text: str) -> None:
    reasons = {
        "": "title is empty",
        "  ": "title is empty",
        "a\x07b": r"title holds the control character '\x07'",
    }
    expected = reasons.get(text, "title has 501 characters; at most 500 are allowed")
    assert offer(title=text)[1] == [expected]


def test_a_title_may_run_over_lines() -> None:
    row, problems = offer(title=" Two\nlines\t✓ ")
    assert (row.title, problems) == ("Two\nlines\t✓", [])


def test_names_are_bounded() -> None:
    assert merchant(name="")[1] == ["name is empty"]
    long = ["name has 201 characters; at most 200 are allowed"]
    assert merchant(name="x" * 201)[1] == long
    assert user(name="x" * 201)[1] == long


@pytest.mark.parametrize("text", ["admitad", "vCommission", "CueLinks", " CJ "])
def test_networks_are_known_in_any_case(text: str) -> None:
    row, problems = merchant(network=text)
    assert (row.network, problems) == (text.strip().lower(), [])


def test_an_unknown_network_is_refused() -> None:
    assert merchant(network="awin")[1] == [
        "network 'awin' is not one of admitad, vcommission, cuelinks, cj"
    ]


def test_a_template_is_refused_with_its_own_reason() -> None:
    assert merchant(tracking_template="https://n.example/?u={url}")[1] == [
        "tracking_template lacks {click_id}: "
        "without the network's sub-id no sale can be traced to its click"
    ]


@pytest.mark.parametrize("text", ["0", "100", "100.00", "4.5", "0.01", " 7 ", "007"])
def test_a_cashback_percent_is_taken_exactly(text: str) -> None:
    row, problems = merchant(cashback_percent=text)
    assert (row.cashback_percent, problems) == (Decimal(text.strip()), [])


@pytest.mark.parametrize(
    "text", ["", "-1", "100.01", "101", "4.555", "4,5", "5%", "1e1", "NaN", "inf", "४", "."]
)
def test_a_cashback_percent_out_of_range_or_too_fine_is_refused(text: str) -> None:
    assert merchant(cashback_percent=text)[1] == [
        f"cashback_percent {text!r} is not a number from 0 to 100 with at most two decimals, "
        "such as 4.5"
    ]


@pytest.mark.parametrize(
    "text", ["diya", "@example.in", "diya@", "a@b@c", "a b@example.in", "a@\x00"]
)
def test_an_email_needs_one_at_sign_and_no_blanks(text: str) -> None:
    assert user(email=text)[1] == [f"email {text!r} is not an e-mail address"]


def test_an_email_is_bounded() -> None:
    assert user(email="a" * 243 + "@example.in")[1] == []
    assert user(email="a" * 244 + "@example.in")[1] == [
        "email has 255 characters; at most 254 are allowed"
    ]


def test_a_mobile_loses_its_punctuation() -> None:
    assert user(mobile="+91 (98000) 000-01")[0].mobile == "+919800000001"


@pytest.mark.parametrize(
    "text", ["123456", "1" * 16, "+", "98000x0001", "++919800000001", "९" * 10]
)
def test_a_mobile_has_7_to_15_digits(text: str) -> None:
    assert user(mobile=text)[1] == [
        f"mobile {text!r} is not a telephone number: 7 to 15 digits, '+' before them"
    ]


def test_all_problems_of_a_row_are_reported() -> None:
    columns = [problem.split()[0] for problem in offer(**dict.fromkeys(OFFER_COLUMNS, "\x07"))[1]]
    assert columns == list(OFFER_COLUMNS)
    columns = [
        problem.split()[0] for problem in merchant(**dict.fromkeys(MERCHANT_COLUMNS, "\x07"))[1]
    ]
    assert columns == list(MERCHANT_COLUMNS)
    columns = [problem.split()[0] for problem in user(**dict.fromkeys(USER_COLUMNS, "\x07"))[1]]
    assert columns == list(USER_COLUMNS)


@given(st.text(st.characters()))
@example("\udcff")
@example("[")
def test_any_text_in_any_field_is_taken_or_reported_in_printable_words(text: str) -> None:
    for column in OFFER_COLUMNS:
        assert all(problem.isprintable() for problem in offer(**{column: text})[1])
    for column in MERCHANT_COLUMNS:
        assert all(problem.isprintable() for problem in merchant(**{column: text})[1])
    for column in USER_COLUMNS:
        assert all(problem.isprintable() for problem in user(**{column: text})[1])
