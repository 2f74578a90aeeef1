from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from couponflow.config import JournalSettings, RedirectSettings
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, free_port
from couponflow.kernel.journal import open_journal
from couponflow.kernel.shared_state import SharedState
from couponflow.kernel.shared_state_memory import MemorySharedState
from couponflow.messages import Click
from couponflow.redirect.metrics import RedirectMetrics
from couponflow.redirect.role import RedirectParts, redirect_role
from couponflow.redirect.shared_rate_limit import CHECK, KEY
from tests.samples import OFFER_ID, PATIENCE_SECONDS, POLL_SECONDS, USER_ID, insert_catalogue

HOST = "127.0.0.1"
PATH = f"/out/zenmart/{OFFER_ID}/{USER_ID}"
JOURNAL = JournalSettings(segment_bytes=65_536, max_bytes=131_072)


class FakeHandle:
    """The supervisor's side of a role."""

    def __init__(self) -> None:
        self.stopping = anyio.Event()
        self.up = anyio.Event()

    def started(self) -> None:
        self.up.set()


@asynccontextmanager
async def redirecting(
    folder: Path, database: Database, shared: SharedState | None
) -> AsyncGenerator[tuple[httpx2.AsyncClient, HealthBoard], None]:
    """A role at work, with nobody to take its clicks over: for a few clicks."""
    clock, handle = SystemClock(), FakeHandle()
    health, channel = HealthBoard(clock), MemoryChannel[Click]("clicks", 1_000, clock)
    with open_journal(folder, JOURNAL, clock) as journal:
        listener = Listener(HOST, free_port(HOST), "granian")
        parts = RedirectParts(
            settings=RedirectSettings(rate_limit_per_minute=20),
            fsync_seconds=0.0,
            trusted_proxies=(),
            listener=listener,
            journal=journal,
            journal_folder=folder,
            channel=channel,
            database=database,
            health=health,
            metrics=RedirectMetrics(journal),
            clock=clock,
            shared=shared,
        )

        async def run() -> None:
            await redirect_role(parts).run(handle)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await handle.up.wait()
            async with httpx2.AsyncClient(base_url=listener.local_url, verify=False) as client:
                yield client, health
            tasks.cancel_scope.cancel()


async def answers(client: httpx2.AsyncClient, times: int) -> list[int]:
    return [(await client.get(PATH)).status_code for _ in range(times)]


async def counted(shared: SharedState) -> int:
    """The installation's clicks of this machine in the minute under way."""
    return (await shared.rate_limit_add(f"{KEY}{HOST}", 0, window_seconds=60.0)).count


@pytest.fixture
async def catalogued(database: Database) -> Database:
    async with database.transaction() as connection:
        await insert_catalogue(connection)
    return database


async def test_clicks_that_other_daemons_allowed_count_here(
    tmp_path: Path, catalogued: Database
) -> None:
    shared = MemorySharedState(SystemClock())
    await shared.rate_limit_add(f"{KEY}{HOST}", 15, window_seconds=60.0)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with redirecting(tmp_path, catalogued, shared) as (client, health):
            assert await answers(client, 1) == [302]
            while await counted(shared) < 16:  # noqa: ASYNC110 - what is waited for sets no event
                await anyio.sleep(POLL_SECONDS)
            assert await answers(client, 5) == [302, 302, 302, 302, 429]
            assert health.snapshot().checks[CHECK].ok


async def test_a_daemon_alone_counts_its_own_clicks(tmp_path: Path, catalogued: Database) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with redirecting(tmp_path, catalogued, None) as (client, health):
            assert await answers(client, 21) == [302] * 20 + [429]
            assert CHECK not in health.snapshot().checks
