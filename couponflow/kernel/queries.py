"""Named SQL queries, kept as plain SQL in `sql/queries/<capability>.sql`."""

import re
from collections.abc import Iterator, Mapping

from couponflow.kernel.resources import resource_path

_NAME_LINE = re.compile(rb"^-- name: *(\S*) *$", re.MULTILINE)
_LEADING_COMMENTS = re.compile(rb"\A(?:[ \t]*(?:--[^\n]*)?\n)*")


class Queries(Mapping[str, bytes]):
    """The queries of one file by name, as psycopg takes them."""

    def __init__(self, file: str, queries: dict[str, bytes]) -> None:
        self._file = file
        self._queries = queries

    def __getitem__(self, name: str) -> bytes:
        try:
            return self._queries[name]
        except KeyError:
            known = ", ".join(self._queries) or "none"
            raise KeyError(f"no query {name!r} in {self._file}; it has: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._queries)

    def __len__(self) -> int:
        return len(self._queries)


def load_queries(capability: str) -> Queries:
    """Read the blocks of `sql/queries/<capability>.sql`; each starts with `-- name: some_query`.

    The comment lines that follow the name are for readers and are left out, so they may hold a
    percent sign, which psycopg would take for a parameter.
    """
    file = f"sql/queries/{capability}.sql"
    text = resource_path("sql", "queries", f"{capability}.sql").read_bytes()
    return Queries(file, parse_queries(text, file))


def parse_queries(text: bytes, file: str) -> dict[str, bytes]:
    """Split the text of a query file; `ValueError` for a name that is missing or used twice."""
    before, *pieces = _NAME_LINE.split(text)
    if _LEADING_COMMENTS.sub(b"", before + b"\n").strip():
        raise ValueError(f"{file}: SQL before the first `-- name:` line")
    queries: dict[str, bytes] = {}
    for name, body in zip(map(bytes.decode, pieces[::2]), pieces[1::2], strict=True):
        sql = _LEADING_COMMENTS.sub(b"", body + b"\n").strip()
        if not name.isidentifier():
            raise ValueError(f"{file}: {name!r} is not a name for a query")
        if name in queries:
            raise ValueError(f"{file}: two queries are called {name!r}")
        if not sql:
            raise ValueError(f"{file}: query {name!r} has no SQL")
        queries[name] = sql
    return queries
