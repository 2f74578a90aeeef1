import psycopg
import pytest

from couponflow.kernel.database import Database
from couponflow.kernel.error_text import describe, primary_message, without_detail

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in f
psycopg.errors.CheckViolation: refused
DETAIL:  Failing row contains (private,
private).
CONTEXT:  private

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "x.py", line 2, in g
ValueError: after
DETAIL:  private"""

GROUP = """  + Exception Group Traceback (most recent call last):
  | ExceptionGroup: several (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | psycopg.errors.CheckViolation: refused
    | DETAIL:  private
    +---------------- 2 ----------------
    | ValueError: after
    +------------------------------------
"""


async def refused(database: Database, statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        async with database.connection() as connection:
            await connection.execute(statement.encode())
    return caught.value


async def test_an_error_of_postgres_is_told_without_the_row(database: Database) -> None:
    error = await refused(
        database,
        "insert into dead_letters values (gen_random_uuid(), '', 'victim@x.example', '{}', 'x', 0)",
    )
    assert "DETAIL:  Failing row contains" in str(error)
    told = describe(error)
    assert "\n" not in told
    assert "victim" not in told
    assert told.startswith('CheckViolation: new row for relation "dead_letters" violates check')
    assert told.endswith(f" ({error.diag.constraint_name})")


async def test_without_a_constraint_none_is_named(database: Database) -> None:
    error = await refused(database, "select 1 / 0")
    assert describe(error) == "DivisionByZero: division by zero"
    assert primary_message(error) == "division by zero"


def test_an_error_that_postgres_never_saw_is_told_as_it_is() -> None:
    assert describe(psycopg.DataError("date too large")) == "DataError: date too large"
    assert primary_message(psycopg.DataError("bad\nDETAIL:  private")) == "bad"
    assert describe(ValueError("5 < 7\n")) == "ValueError: 5 < 7\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fine", "fine"),
        ("a DETAIL: in a line", "a DETAIL: in a line"),
        ("DETAIL:  private", ""),
        ("refused\nDETAIL:  private\n\nprivate", "refused"),
        ("refused\n  CONTEXT:  private", "refused"),
        (repr(ValueError("refused\nDETAIL:  private")), "ValueError('refused"),
    ],
)
def test_detail_and_context_are_cut_to_the_end(text: str, expected: str) -> None:
    assert without_detail(text) == expected


def test_a_row_that_looks_like_a_traceback_is_cut_too() -> None:
    forged = "refused\nDETAIL:  x\n\nTraceback (most recent call last):\nprivate"
    assert without_detail(forged) == "refused"


@pytest.mark.parametrize(("text", "lines_left"), [(TRACEBACK, 9), (GROUP, 7)])
def test_a_traceback_goes_on_after_it(text: str, lines_left: int) -> None:
    left = without_detail(text)
    assert "private" not in left
    assert "refused" in left
    assert "ValueError: after" in left
    assert len(left.splitlines()) == lines_left
