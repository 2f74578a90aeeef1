"""What must always hold between the click journal and the database."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from couponflow.kernel.audit import AuditScope, Invariant, Row
from couponflow.kernel.database import load_queries
from couponflow.kernel.journal_view import read_segments
from couponflow.messages import Click
from couponflow.redirect import set_aside

JOURNAL_FOLDER = "journal"
_IDS_A_QUERY = 10_000
_MAX_OFFENDERS = 20
_queries = load_queries("redirect")
_decode = msgspec.json.Decoder(Click).decode


async def _clicks_lost(scope: AuditScope) -> list[Row]:
    """Clicks let go of that are neither on their way nor stored nor buried, and what is no click.

    The journal is read before the stream, and that before the database: a click may move on in
    between, never back.
    """
    offenders: list[Row] = []
    for ids in _released_ids(scope.var_path / JOURNAL_FOLDER, offenders):
        missing = await _missing(scope, ids)
        if missing:
            streamed = {_click_id(message) for message in await scope.streamed(Click.channel)}
            missing = await _missing(scope, [each for each in missing if each not in streamed])
        offenders += [{"click_id": click_id} for click_id in missing]
        if len(offenders) >= _MAX_OFFENDERS:
            break
    return offenders[:_MAX_OFFENDERS]


async def _missing(scope: AuditScope, ids: list[str]) -> list[str]:
    async with scope.database.connection() as connection:
        cursor = await connection.execute(_queries["audit_missing_clicks"], {"ids": ids})
        return [click_id async for (click_id,) in cursor]


def _click_id(message: bytes) -> str:
    """The id of a click; empty for an entry that is none, and will be a dead letter."""
    try:
        return _decode(message).click_id
    except msgspec.DecodeError:
        return ""


def _released_ids(folder: Path, offenders: list[Row]) -> Iterator[list[str]]:
    """Ids of clicks before the checkpoint that are still on disk, a query's worth at a time.

    A record that is no click is added to `offenders`.
    """
    ids: list[str] = []
    for number, record in enumerate(read_segments(folder), 1):
        if record.beyond_checkpoint:
            continue
        try:
            ids.append(_decode(record.payload).click_id)
        except msgspec.DecodeError:
            if len(offenders) < _MAX_OFFENDERS:
                offenders.append(_not_a_click(number, record.payload))
        if len(ids) >= _IDS_A_QUERY:
            yield ids
            ids = []
    if ids:
        yield ids


def _not_a_click(number: int, payload: bytes) -> Row:
    """`position` counts the records on disk, from the oldest."""
    return {
        "problem": "not a click",
        "position": f"record {number} on disk",
        "set_aside": set_aside.file_name(payload),
    }


INVARIANTS = (
    Invariant(
        "journalled-clicks-are-kept",
        "Every click the journal has let go of is in affiliate_clicks, in dead_letters or in the "
        "stream of clicks; all others are still in the journal.",
        _clicks_lost,
    ),
)
