"""What may be told of an error: PostgreSQL's own texts quote rows, and rows hold personal data."""

import re

import psycopg

_TRACEBACK = "Traceback (most recent call last):"
# The second way to write a line's end is that of `repr`; the bars are those of a group's traceback.
_QUOTING = re.compile(r"(?:^|\n|\\n)[ |]*(?:DETAIL|CONTEXT):")
_QUOTING_IN_TRACEBACK = re.compile(
    rf"{_QUOTING.pattern}.*?(?="
    r"\n[ |]*\n[ |]*(?:During handling of the above|The above exception was the)"
    rf"|\n[ |+-]*{re.escape(_TRACEBACK)}"
    r"|\n *\+[+-]{9,}"
    r"|\Z)",
    re.DOTALL,
)


def describe(error: BaseException) -> str:
    """Name the error and say what it says; of PostgreSQL's, what quotes no row."""
    name = type(error).__name__
    if not isinstance(error, psycopg.Error):
        return f"{name}: {error}"
    constraint = error.diag.constraint_name
    return f"{name}: {primary_message(error)}{f' ({constraint})' if constraint else ''}"


def primary_message(error: psycopg.Error) -> str:
    """PostgreSQL's message without DETAIL and CONTEXT; psycopg's own where it never got there."""
    return error.diag.message_primary or without_detail(str(error))


def without_detail(text: str) -> str:
    """Cut PostgreSQL's DETAIL and CONTEXT, and all that follows them, out of an error's text.

    After them a traceback goes on with its next part; any other text ends, whatever the row that
    was quoted looks like.
    """
    found = _QUOTING.search(text)
    if found is None:
        return text
    if _TRACEBACK in text[: found.start()]:
        return _QUOTING_IN_TRACEBACK.sub("", text)
    return text[: found.start()]
