"""The header: any order, and everything that is wrong with it at once."""

import pytest

from couponflow.catalogue.columns import match_columns
from couponflow.catalogue.csv_records import CsvRecord
from couponflow.catalogue.errors import ImportRefused
from couponflow.catalogue.rows import USER_COLUMNS

NEEDED = "a header line is needed: user_uuid,email,mobile,name"


def header(*names: str, problem: str | None = None) -> CsvRecord:
    return CsvRecord(1, names, problem, False)


def test_columns_come_in_any_order_and_case() -> None:
    select = match_columns(header("Name", " email", "USER_UUID", "mobile"), USER_COLUMNS)
    assert select(["n", "e", "u", "m"]) == ("u", "e", "m", "n")


def test_the_columns_of_a_rejects_file_are_passed_over() -> None:
    select = match_columns(header(*USER_COLUMNS, "line", "reason"), USER_COLUMNS)
    assert select(["u", "e", "m", "n", "7", "bad"]) == ("u", "e", "m", "n")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "the file is empty; "),
        (header("user_uuid", "email", "mobile"), "column name is missing. "),
        (
            header("user_id", "email", "mobile", "name", "shoe_size"),
            "unknown column 'user_id', did you mean user_uuid?; unknown column 'shoe_size'; "
            "column user_uuid is missing. ",
        ),
        (header(*USER_COLUMNS, "Email"), "column 'email' is there 2 times. "),
        (header("user_uuid;email;mobile;name"), "columns must be separated by commas. "),
        (header("\udcff\udcfe", problem="line holds the byte 0xff"), "line 1: line holds the byte"),
        (header(*USER_COLUMNS, ""), "unknown column ''. "),
        (header(*USER_COLUMNS, "\udcff"), r"unknown column '\udcff'. "),
    ],
)
def test_a_header_that_does_not_fit_is_refused(given: CsvRecord | None, reason: str) -> None:
    with pytest.raises(ImportRefused) as refused:
        match_columns(given, USER_COLUMNS)
    assert reason in str(refused.value)
    assert str(refused.value).endswith(NEEDED)
