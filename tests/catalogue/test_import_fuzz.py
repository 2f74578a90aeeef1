"""Imports of anything at all: a file is refused, or each of its rows is taken or reported."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.catalogue.errors import ImportRefused
from couponflow.catalogue.store import Kind
from tests.catalogue.importer import MERCHANTS, OFFERS, TABLES, USERS, Importer, counts

pytestmark = pytest.mark.once

HEADERS: dict[Kind, bytes] = {
    kind: content.splitlines()[0].encode()
    for kind, content in (("merchants", MERCHANTS), ("offers", OFFERS), ("users", USERS))
}
# One database serves all examples of a test: what earlier ones left is as good as anything.
relaxed = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Pieces that are, or nearly are, right in some column, so that many rows come through the checks.
SPECIMENS = (
    *(f"0197a3c2-7b1e-7c3d-9a2f-00000000000{digit}" for digit in "0123"),
    *("mitti", "kitaab", "neu", "a", "a\u0130@b", "ai@b", "AI@B", "i\u0307@b", "x@\u00e9.in"),
    *("cj", "ADMITAD", "4.5", "100", "0.00", "+919800000001", "12345678", "true", "0", ""),
    *("https://m.example/", "http://[::1]:1/\u0939?#", "https://m.example/\\", "https://-/"),
    *("https://n.example/?{click_id}{url}", "http://n.example/#{click_id}{click_id}"),
    *("2026-01-01", "2027-01-01T00:00:00+05:30", "0001-01-01", "9999-12-31T23:59:59.999999"),
    *('"two\nlines"', '"a ""quote"""', '"', "\t", "\\N", "\\.", "a\\", "\ufeff", "\U0001f6cd"),
)


@st.composite
def files(draw: st.DrawFn, kind: Kind) -> bytes:
    """A file with the right header and rows of specimens, text and bytes."""
    width = HEADERS[kind].count(b",") + 1
    field = st.one_of(
        st.sampled_from(SPECIMENS).map(str.encode),
        st.text(max_size=8).map(str.encode),
        st.binary(max_size=4),
    )
    rows = draw(st.lists(st.lists(field, min_size=width, max_size=width), max_size=12))
    return b"\n".join([HEADERS[kind], *(b",".join(row) for row in rows)])


def rows_that_fit(kind: Kind) -> st.SearchStrategy[bytes]:
    """A file whose rows have a likely value in each column."""
    identifiers, urls = SPECIMENS[:4], [text for text in SPECIMENS if "://" in text]
    columns: dict[Kind, tuple[tuple[str, ...] | list[str], ...]] = {
        "merchants": (
            ("mitti", "neu", "a"),
            SPECIMENS,
            ("cj", "Admitad"),
            urls,
            ["", *urls],
            ("4.5", "100", "0.00"),
        ),
        "offers": (
            identifiers,
            ("mitti", "kitaab"),
            SPECIMENS,
            urls,
            ("", "2026-01-01", "0001-01-01"),
            ("", "9999-12-31T23:59:59.999999"),
            ("", "0"),
        ),
        "users": (
            identifiers,
            ("", *(text for text in SPECIMENS if "@" in text)),
            ("", "+919800000001"),
            SPECIMENS,
        ),
    }
    row = st.tuples(*(st.sampled_from(values) for values in columns[kind])).map(",".join)
    lines = st.lists(row, max_size=6).map("\n".join).map(str.encode)
    return lines.map(lambda text: HEADERS[kind] + b"\n" + text)


async def check(run: Importer, kind: Kind, content: bytes) -> None:
    before = await run.tables()
    try:
        preview = await run(kind, content, dry_run=True)
        assert await run.tables() == before
        report = await run(kind, content)
    except ImportRefused:
        assert await run.tables() == before
        return
    assert counts(report) == counts(preview)
    read, inserted, updated, unchanged, rejected = counts(report)
    assert inserted + updated + unchanged + rejected == read
    assert min(inserted, updated, unchanged, rejected) >= 0
    lines = [row.line for row in run.rejected()]
    assert len(lines) == rejected
    assert lines == sorted(set(lines))
    assert all(row.reason.isprintable() for row in run.rejected())
    if kind != "users":  # An e-mail that a user gave up may go to another the second time.
        again = await run(kind, content)
        assert counts(again) == (read, 0, 0, inserted + updated + unchanged, rejected)


@relaxed
@given(st.sampled_from(TABLES), st.binary(max_size=200))
async def test_any_bytes_are_refused_or_reported(
    filled: Importer, kind: Kind, content: bytes
) -> None:
    await check(filled, kind, content)


@relaxed
@given(st.sampled_from(TABLES).flatmap(lambda kind: st.tuples(st.just(kind), files(kind))))
async def test_any_rows_are_taken_or_reported(
    filled: Importer, example: tuple[Kind, bytes]
) -> None:
    await check(filled, *example)


@relaxed
@given(st.sampled_from(TABLES).flatmap(lambda kind: st.tuples(st.just(kind), rows_that_fit(kind))))
async def test_what_the_checks_let_through_the_database_takes(
    filled: Importer, example: tuple[Kind, bytes]
) -> None:
    await check(filled, *example)
