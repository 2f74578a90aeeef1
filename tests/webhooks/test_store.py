import pytest

from couponflow.kernel.database import Database
from couponflow.webhooks.store import store_events
from tests.webhooks.deliveries import event_row

pytestmark = pytest.mark.once


@pytest.mark.parametrize(("setting", "used"), [("off", "on"), ("remote_apply", "remote_apply")])
async def test_a_commit_waits_for_the_disk_and_leaves_stricter_settings(
    database: Database, setting: str, used: str
) -> None:
    async with database.connection() as connection:
        await connection.execute(f"set synchronous_commit = {setting}".encode())
        for _ in range(8):  # more often than it takes psycopg to prepare a statement
            async with connection.transaction(force_rollback=True):
                assert len(await store_events(connection, [event_row(), event_row()])) == 2
                cursor = await connection.execute("show synchronous_commit")
                assert await cursor.fetchone() == (used,)
        cursor = await connection.execute("show synchronous_commit")
        assert await cursor.fetchone() == (setting,)
