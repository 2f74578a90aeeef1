"""Writing clicks into PostgreSQL."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

import anyio.lowlevel
import psycopg
from psycopg import sql

from couponflow.kernel.database import load_queries
from couponflow.messages import Click

_queries = load_queries("clicks")
_ROWS_A_SLICE = 200
"""About a third of a millisecond of Python, after which redirects get their turn."""
_TABS_A_ROW = 8
_IP_PLACE = 5
_NULL = r"\N"
_MADE_ANEW = "made anew after a drop"
"""The comment by which the audit's queries know a partition that lacks rows it once had."""
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


async def known_offers(
    connection: psycopg.AsyncConnection, offer_ids: Iterable[str]
) -> dict[str, str]:
    """The merchant of each offer that exists."""
    cursor = await connection.execute(_queries["known_offers"], {"offer_ids": list(offer_ids)})
    return {offer_id: merchant_id async for offer_id, merchant_id in cursor}


async def commit_durably(connection: psycopg.AsyncConnection) -> None:
    """Have the caller's transaction on disk when its commit returns, whatever the server's way."""
    await connection.execute(_queries["commit_durably"])


async def insert_new_clicks(connection: psycopg.AsyncConnection, clicks: Sequence[Click]) -> None:
    """Store clicks and count them, in the caller's transaction.

    Raises psycopg's `UniqueViolation` if one of them is stored already, and another
    `IntegrityError` or a `DataError` if one of them cannot be stored.
    """
    await commit_durably(connection)
    await _copy(connection, "copy_clicks", clicks)
    counts: Counter[tuple[int, str, str]] = Counter(
        (int(click.clicked_at) // 60 * 60, click.merchant_id, click.verdict) for click in clicks
    )
    await _count(connection, counts)


async def insert_missing_clicks(
    connection: psycopg.AsyncConnection, clicks: Sequence[Click]
) -> int:
    """The same for clicks of which some may be stored already; return how many were not.

    Those that were are left as they are, counters included. Takes twice as long.
    """
    await commit_durably(connection)
    await connection.execute(_queries["create_staging"])
    await _copy(connection, "copy_to_staging", clicks)
    cursor = await connection.execute(_queries["take_from_staging"])
    # As the rows have it: whatever is odd about a click, its counter agrees.
    counts = Counter([row async for row in cursor])
    await _count(connection, counts)
    return counts.total()


async def _copy(connection: psycopg.AsyncConnection, query: str, clicks: Sequence[Click]) -> None:
    async with connection.cursor() as cursor, cursor.copy(_queries[query]) as copy:
        for start in range(0, len(clicks), _ROWS_A_SLICE):
            await copy.write("".join(map(_row, clicks[start : start + _ROWS_A_SLICE])))
            await anyio.lowlevel.checkpoint()


async def _count(
    connection: psycopg.AsyncConnection, counts: Mapping[tuple[int, str, str], int]
) -> None:
    """Add to the counters, by minute (seconds since the epoch), merchant and verdict."""
    if not counts:
        return
    minutes, merchant_ids, verdicts = zip(*counts, strict=True)
    await connection.execute(
        _queries["count_clicks"],
        {
            "minutes": list(minutes),
            "merchant_ids": list(merchant_ids),
            "verdicts": list(verdicts),
            "clicks": list(counts.values()),
        },
    )


def _row(click: Click) -> str:
    """A row in COPY's text format; psycopg's `write_row` takes four times as long."""
    row = (
        f"{click.click_id}\t{click.merchant_id}\t{click.offer_id}\t{click.user_id}\t"
        f"{_timestamp(click.clicked_at)}\t{click.ip}\t{click.user_agent}\t{click.referer}\t"
        f"{click.verdict}\n"
    )
    if (
        not click.ip
        or "\\" in row
        or "\r" in row
        or row.count("\t") != _TABS_A_ROW
        or row.count("\n") != 1
    ):
        return _escaped_row(click)
    return row


def _escaped_row(click: Click) -> str:
    """The same for a click without address, or with characters that mean something to COPY."""
    fields = (
        click.click_id,
        click.merchant_id,
        click.offer_id,
        click.user_id,
        _timestamp(click.clicked_at),
        click.ip,
        click.user_agent,
        click.referer,
        click.verdict,
    )
    escaped = [field.translate(_ESCAPES) for field in fields]
    escaped[_IP_PLACE] = escaped[_IP_PLACE] or _NULL
    return "\t".join(escaped) + "\n"


def _timestamp(clicked_at: float) -> str:
    """A moment as PostgreSQL reads it, to the microsecond; the same for the same click, always."""
    second, microsecond = divmod(int(clicked_at * 1_000_000), 1_000_000)
    return f"{_second(second)}.{microsecond:06d}+00"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S}"


async def partition_days(connection: psycopg.AsyncConnection) -> set[date]:
    """The days (UTC) that `affiliate_clicks` has a partition for."""
    cursor = await connection.execute(_queries["partition_days"])
    return {date.fromisoformat(text) async for (text,) in cursor}


async def create_partition(connection: psycopg.AsyncConnection, day: date) -> None:
    """Make a day's partition, beside readers and writers of the others.

    `create table ... partition of` would wait for every reader of `affiliate_clicks`, with every
    writer waiting behind it; attaching an empty table locks out neither.

    Raises psycopg's `DuplicateTable` if a table of that name is there (`DuplicateObject` or
    `UniqueViolation` if it comes to be there at this moment),
    `InvalidObjectDefinition` if another partition takes the day, `CheckViolation` if a default
    partition has clicks of it, and `LockNotAvailable` after a second.
    """
    first = datetime(day.year, day.month, day.day, tzinfo=UTC)
    bounds = {"first": first.isoformat(), "end": (first + timedelta(days=1)).isoformat()}
    name = sql.Identifier(f"affiliate_clicks_{day:%Y_%m_%d}")
    async with connection.transaction():
        await connection.execute("set local lock_timeout = '1s'")
        await connection.execute(
            sql.SQL(
                "create table {} (like affiliate_clicks"
                " including defaults including constraints including indexes)"
            ).format(name)
        )
        cursor = await connection.execute(_queries["has_minutes"], bounds)
        if await cursor.fetchone() == (True,):
            # The audit must not miss the rows that went with the partition before this one.
            await connection.execute(
                sql.SQL("comment on table {} is {}").format(name, sql.Literal(_MADE_ANEW))
            )
        await connection.execute(
            sql.SQL(
                "alter table affiliate_clicks attach partition {} for values from ({}) to ({})"
            ).format(name, sql.Literal(bounds["first"]), sql.Literal(bounds["end"]))
        )


def is_partition_missing(error: psycopg.errors.CheckViolation) -> bool:
    """Whether an insert failed because the day has no partition, which is no fault of the row."""
    return error.diag.constraint_name is None
