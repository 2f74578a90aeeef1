"""What is in the catalogue's tables, whole rows, for comparing before with after."""

from typing import Literal

from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from couponflow.kernel.database import Database


async def table(
    database: Database, name: Literal["merchants", "offers", "users"]
) -> list[dict[str, object]]:
    """Every column of every row, `changed_in` included, in the order of the ids."""
    async with (
        database.connection() as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        await cursor.execute(SQL("select * from {} order by id").format(Identifier(name)))
        return await cursor.fetchall()
