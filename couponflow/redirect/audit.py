"""What must always hold between the click journal and the database."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from couponflow.kernel.audit import AuditScope, Invariant, Row
from couponflow.kernel.database import load_queries
from couponflow.kernel.journal_view import read_segments
from couponflow.messages import Click

JOURNAL_FOLDER = "journal"
_IDS_A_QUERY = 10_000
_MAX_OFFENDERS = 20
_queries = load_queries("redirect")
_decode = msgspec.json.Decoder(Click).decode


async def _clicks_lost(scope: AuditScope) -> list[Row]:
    """Clicks the journal has let go of that are neither stored nor buried.

    The journal is read before the database: a click may move on in between, never back.
    """
    offenders: list[Row] = []
    for ids in _released_ids(scope.var_path / JOURNAL_FOLDER):
        async with scope.database.connection() as connection:
            cursor = await connection.execute(_queries["audit_missing_clicks"], {"ids": ids})
            offenders += [{"click_id": click_id} async for (click_id,) in cursor]
        if len(offenders) >= _MAX_OFFENDERS:
            break
    return offenders[:_MAX_OFFENDERS]


def _released_ids(folder: Path) -> Iterator[list[str]]:
    """Ids of clicks before the checkpoint that are still on disk, a query's worth at a time."""
    ids: list[str] = []
    for record in read_segments(folder):
        if record.beyond_checkpoint:
            continue
        ids.append(_decode(record.payload).click_id)
        if len(ids) >= _IDS_A_QUERY:
            yield ids
            ids = []
    if ids:
        yield ids


INVARIANTS = (
    Invariant(
        "journalled-clicks-are-kept",
        "Every click the journal has let go of is in affiliate_clicks or in dead_letters; "
        "all others are still in the journal.",
        _clicks_lost,
    ),
)
