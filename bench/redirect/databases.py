"""One PostgreSQL server for all peers, durable as in production, and a new database a turn."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import anyio
import psycopg
from psycopg import conninfo, sql

from bench.redirect.catalogue import Catalogue
from couponflow.kernel.embedded_postgres import embedded_postgres

PEERS_SQL = Path(__file__).with_name("peers.sql")
POLL_SECONDS = 0.2


class ClicksMissing(Exception):
    """Fewer rows arrived in PostgreSQL than redirects were answered: the peer lost clicks."""


class ClicksInvented(Exception):
    """More rows arrived in PostgreSQL than redirects can have been answered."""


@dataclass(frozen=True, slots=True)
class Server:
    """The PostgreSQL server of a bench."""

    url: str

    def database_url(self, name: str) -> str:
        """Return the URL of a database, in the form that libpq and node's `pg` both read."""
        parts = conninfo.conninfo_to_dict(self.url)
        user, host = quote(str(parts["user"])), quote(str(parts["host"]), safe="")
        return f"postgresql://{user}@/{quote(name)}?host={host}"

    async def version(self) -> str:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            return str(connection.info.parameter_status("server_version"))

    async def create(self, name: str, template: str | None = None) -> str:
        """Make an empty database, or a copy of another one, and return its URL."""
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" template {}").format(sql.Identifier(template))
        await self._run(statement)
        return self.database_url(name)

    async def drop(self, name: str) -> None:
        await self._run(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    @contextlib.asynccontextmanager
    async def turn(self, template: str) -> AsyncIterator[str]:
        """Give a copy of a template for one turn; every turn starts on a checkpointed server."""
        name = f"{template}_turn"
        url = await self.create(name, template)
        await self._run(sql.SQL("checkpoint").format())
        try:
            yield url
        finally:
            with anyio.CancelScope(shield=True):
                await self.drop(name)

    async def _run(self, statement: sql.Composed) -> None:
        connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        async with connection:
            await connection.execute(statement)


@contextlib.asynccontextmanager
async def postgres_server(folder: Path) -> AsyncIterator[Server]:
    """Run the embedded PostgreSQL, durable as in production."""
    async with embedded_postgres(folder) as url:
        yield Server(url)


async def load_peers_catalogue(url: str, catalogue: Catalogue) -> None:
    """Make the Bun peers' tables and fill in the same offers couponflow imports."""
    merchants = {merchant.slug: merchant for merchant in catalogue.merchants}
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(PEERS_SQL.read_bytes())
        async with connection.cursor() as cursor:
            await cursor.execute(
                "create temporary table imported (offer_uuid uuid, merchant_slug text, title text,"
                " url text, starts_at text, expires_at text, active boolean)"
            )
            async with cursor.copy("copy imported from stdin (format csv, header)") as copy:
                with catalogue.offers_csv.open("rb") as file:
                    while block := file.read(1 << 20):
                        await copy.write(block)
            await cursor.execute("create temporary table m (slug text, id uuid, template text)")
            await cursor.executemany(
                "insert into m values (%s, %s, %s)",
                [(slug, merchant.id, merchant.template) for slug, merchant in merchants.items()],
            )
            await cursor.execute(
                "insert into offers select offer_uuid, m.id, m.slug, m.template, url, active"
                " from imported join m on m.slug = imported.merchant_slug"
            )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("vacuum analyze")


@dataclass(frozen=True, slots=True)
class ClickCounter:
    """Counts the rows of a clicks table while nothing else reads it."""

    url: str
    table: str

    async def count(self) -> int:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            query = sql.SQL("select count(*) from {}").format(sql.Identifier(self.table))
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            return int(row[0])

    async def reached(self, at_least: int, deadline_seconds: float) -> int:
        """Wait until there are that many rows; return how many there are."""
        count = 0
        with anyio.move_on_after(deadline_seconds):
            while True:
                count = await self.count()
                if count >= at_least:
                    return count
                await anyio.sleep(POLL_SECONDS)
        raise ClicksMissing(
            f"{self.table} has {count:,} rows after {deadline_seconds:.0f} s; "
            f"at least {at_least:,} redirects were answered"
        )

    async def settled(self, at_least: int, deadline_seconds: float, quiet_seconds: float) -> int:
        """Wait for that many rows, then until no more come for a while; return their number."""
        count = await self.reached(at_least, deadline_seconds)
        with anyio.fail_after(deadline_seconds):
            while True:
                await anyio.sleep(quiet_seconds)
                before, count = count, await self.count()
                if count == before:
                    return count
