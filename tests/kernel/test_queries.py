import pytest

from couponflow.kernel.queries import Queries, parse_queries

FILE = "sql/queries/example.sql"

TEXT = b"""-- Queries of an example.

-- name: first
-- Takes 50% of nothing.
select 1;

-- name: second
select
    -- inside a query a comment stays
    2
"""


def test_each_block_is_a_query_without_the_comments_above_it() -> None:
    assert parse_queries(TEXT, FILE) == {
        "first": b"select 1;",
        "second": b"select\n    -- inside a query a comment stays\n    2",
    }


def test_an_unknown_name_tells_the_file_and_the_names_it_has() -> None:
    queries = Queries(FILE, parse_queries(TEXT, FILE))
    with pytest.raises(
        KeyError, match=r"no query 'third' in sql/queries/example.sql.*first, second"
    ):
        queries["third"]
    assert "third" not in queries
    assert list(queries) == ["first", "second"]
    assert len(queries) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"-- name: a\nselect 1\n-- name: a\nselect 2\n", "two queries are called 'a'"),
        (b"-- name: a\n-- only words\n", "query 'a' has no SQL"),
        (b"-- name:\nselect 1\n", "'' is not a name"),
        (b"-- name: two-words\nselect 1\n", "'two-words' is not a name"),
        (b"select 1\n-- name: a\nselect 2\n", "SQL before the first"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_queries(text, FILE)


def test_a_file_without_queries_has_none() -> None:
    assert parse_queries(b"-- nothing yet\n", FILE) == {}
