"""The catalogue's SQL: rows are staged by COPY, then written by one upsert a table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec
import psycopg
import structlog
from msgspec.structs import astuple

from couponflow.catalogue.rows import MerchantRow, OfferRow, UserRow
from couponflow.catalogue.sample import sample_merchants, sample_offers, sample_users
from couponflow.kernel.database import Connection, Database, DatabaseAway, load_queries

_log = structlog.get_logger("couponflow.catalogue")
_queries = load_queries("catalogue")

Kind: TypeAlias = Literal["merchants", "offers", "users"]
"""What can be imported; also the name of its table."""


class EmailOwner(msgspec.Struct, frozen=True, gc=False):
    """Who has an e-mail address."""

    folded: str
    """The address as the database compares it, which is not always as Python would."""
    user_id: str | None


class Written(msgspec.Struct, frozen=True):
    """How many rows an upsert inserted and changed; rows that are the same it leaves alone."""

    inserted: int
    updated: int


async def begin_staging(connection: Connection, kind: Kind, *, dry_run: bool) -> None:
    """Make the staging table, which ends with the caller's transaction.

    With `dry_run`, PostgreSQL refuses to change anything else until then.
    """
    await connection.execute(_queries["lift_statement_timeout"])
    await connection.execute(_queries[f"stage_{kind}"])
    if dry_run:
        await connection.execute(_queries["forbid_changes"])


async def try_import_lock(connection: Connection, kind: Kind) -> bool:
    """Keep other imports of this kind out until the transaction ends; False if one is running."""
    cursor = await connection.execute(_queries["try_import_lock"], {"kind": kind})
    return await cursor.fetchone() == (True,)


async def stage_merchants(connection: Connection, rows: Iterable[MerchantRow]) -> None:
    """Add merchants to their staging table; no slug may come twice."""
    await _copy(connection, "merchants", map(astuple, rows))


async def stage_offers(
    connection: Connection, rows: Iterable[OfferRow], merchant_ids: Mapping[str, str]
) -> None:
    """Add offers of these merchants to their staging table; no id may come twice."""
    values = (
        (
            row.offer_id,
            merchant_ids[row.merchant_slug],
            row.title,
            row.url,
            row.starts_at,
            row.expires_at,
            row.active,
        )
        for row in rows
    )
    await _copy(connection, "offers", values)


async def stage_users(connection: Connection, rows: Iterable[UserRow]) -> None:
    """Add users to their staging table; no id and no e-mail may come twice."""
    await _copy(connection, "users", map(astuple, rows))


async def upsert(connection: Connection, kind: Kind) -> Written:
    """Write what is staged into its table."""
    return await _counted(connection, f"upsert_{kind}")


async def compare(connection: Connection, kind: Kind) -> Written:
    """Say what `upsert` would do."""
    return await _counted(connection, f"compare_{kind}")


async def read_merchant_ids(connection: Connection) -> dict[str, str]:
    """Every merchant's id by its slug."""
    cursor = await connection.execute(_queries["merchant_ids"])
    return {slug: merchant_id async for slug, merchant_id in cursor}


async def read_email_owners(connection: Connection, emails: Sequence[str]) -> dict[str, EmailOwner]:
    """Who has each of these addresses, whatever its case."""
    cursor = await connection.execute(_queries["email_owners"], {"emails": emails})
    return {email: EmailOwner(folded, user_id) async for email, folded, user_id in cursor}


async def settle(database: Database, kind: Kind) -> None:
    """Leave a table as fast to read after an import as it will be once autovacuum comes by.

    The import itself is done: whatever goes wrong here is logged and left to autovacuum.
    """
    try:
        async with database.connection() as connection:
            await connection.execute(_queries[f"settle_{kind}"])
    except (DatabaseAway, psycopg.Error) as error:
        _log.warning("table not vacuumed after the import", table=kind, error=str(error))


async def load_sample(database: Database, sandbox_url: str) -> None:
    """Put the sample catalogue in, with links that lead to the sandbox networks.

    Loading it again changes nothing but the links' address, if that is another.
    """
    async with database.transaction() as connection:
        await begin_staging(connection, "merchants", dry_run=False)
        await stage_merchants(connection, sample_merchants(sandbox_url))
        await upsert(connection, "merchants")
        await begin_staging(connection, "offers", dry_run=False)
        await stage_offers(connection, sample_offers(), await read_merchant_ids(connection))
        await upsert(connection, "offers")
        await begin_staging(connection, "users", dry_run=False)
        await stage_users(connection, sample_users())
        await upsert(connection, "users")


async def _copy(connection: Connection, kind: Kind, rows: Iterable[Sequence[object]]) -> None:
    async with (
        connection.cursor() as cursor,
        cursor.copy(_queries[f"copy_{kind}"]) as copy,
    ):
        for row in rows:
            await copy.write_row(row)


async def _counted(connection: Connection, query: str) -> Written:
    cursor = await connection.execute(_queries[query])
    counts = await cursor.fetchone()
    if counts is None:
        raise RuntimeError(f"{query} counted nothing")
    return Written(inserted=counts[0], updated=counts[1])
