from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import psycopg
import pytest
from structlog.testing import capture_logs

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.migrations import migrate
from couponflow.redirect.catalogue_mirror import CatalogueMirror
from couponflow.redirect.offers import MerchantEntry, OfferEntry, OfferTable
from tests.postgres_server import PostgresServer
from tests.samples import (
    MERCHANT_ID,
    OFFER_ID,
    OTHER_MERCHANT_ID,
    OTHER_OFFER_ID,
    TEMPLATE,
    insert_catalogue,
    insert_merchant,
    insert_offer,
    until,
)

FOREVER = float("inf")
LONGER_THAN_ANY_TEST = 600.0


class Mirrored:
    """A mirror, its offers and what it said."""

    def __init__(self, database: Database, *, poll_seconds: float = LONGER_THAN_ANY_TEST) -> None:
        self.offers: OfferTable = {}
        self.clock = ManualClock()
        self.health = HealthBoard(self.clock)
        self.completions = 0
        self.mirror = CatalogueMirror(
            self.offers,
            database,
            self.health,
            self.clock,
            poll_seconds=poll_seconds,
            stale_seconds=300,
            on_complete=self._complete,
        )

    def _complete(self) -> None:
        self.completions += 1

    async def sync(self) -> set[str]:
        await self.mirror.sync()
        return set(self.offers)

    def link(self, offer_id: str = OFFER_ID) -> str:
        return "CLICK".join(self.offers[offer_id].parts)

    def check(self) -> tuple[bool, str]:
        check = self.health.snapshot().checks["catalogue"]
        return check.ok, check.detail


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Somebody else's connection, on which every statement is a transaction."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def mirrored(database: Database) -> Mirrored:
    return Mirrored(database)


async def test_the_first_sync_loads_everything(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    starts_at = datetime(2026, 1, 1, tzinfo=UTC)
    expires_at = datetime(2027, 1, 1, tzinfo=UTC)
    await insert_merchant(admin, fallback_url="https://shop.example/sale")
    await insert_offer(admin)
    await insert_offer(admin, OTHER_OFFER_ID, starts_at=starts_at, expires_at=expires_at)
    assert mirrored.check() == (False, "not loaded yet")
    await mirrored.sync()
    merchant = MerchantEntry(MERCHANT_ID, "zenmart", "Zenmart", "https://shop.example/sale")
    parts = ("https://go.example/c?sub=", "&to=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc")
    assert mirrored.offers == {
        OFFER_ID: OfferEntry(merchant, parts, -FOREVER, FOREVER),
        OTHER_OFFER_ID: OfferEntry(merchant, parts, starts_at.timestamp(), expires_at.timestamp()),
    }
    assert mirrored.completions == 1
    assert mirrored.check() == (True, "2 offers")


async def test_an_empty_catalogue_is_complete(mirrored: Mirrored) -> None:
    assert await mirrored.sync() == set()
    assert (mirrored.completions, mirrored.check()) == (1, (True, "0 offers"))


async def test_a_sync_takes_over_what_changed_and_leaves_the_rest(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    await insert_catalogue(admin)
    await mirrored.sync()
    # Past the transactions of the first look, which the second would read again.
    await mirrored.sync()
    untouched = mirrored.offers[OTHER_OFFER_ID]
    await admin.execute("update offers set url = 'https://new.example/' where id = %s", [OFFER_ID])
    new_offer = "01920000-0000-7000-8000-0000000000c3"
    await insert_offer(admin, new_offer)
    assert await mirrored.sync() == {OFFER_ID, OTHER_OFFER_ID, new_offer}
    assert mirrored.link().endswith("&to=https%3A%2F%2Fnew.example%2F")
    assert mirrored.offers[OTHER_OFFER_ID] is untouched


async def test_a_withdrawn_offer_stays_known_as_ended(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    await insert_catalogue(admin)
    await mirrored.sync()
    await admin.execute("update offers set active = false where id = %s", [OFFER_ID])
    await mirrored.sync()
    assert mirrored.offers[OFFER_ID].ends_at == -FOREVER
    assert mirrored.offers[OTHER_OFFER_ID].ends_at == FOREVER


async def test_a_merchant_that_changes_its_template_changes_all_its_links(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    await insert_catalogue(admin)
    await mirrored.sync()
    await mirrored.sync()
    await admin.execute(
        "update merchants set tracking_template = 'https://new.example/{click_id}/?u={url}',"
        " name = 'New name' where id = %s",
        [MERCHANT_ID],
    )
    await mirrored.sync()
    encoded = "https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc"
    assert mirrored.link() == f"https://new.example/CLICK/?u={encoded}"
    assert mirrored.offers[OFFER_ID].merchant.name == "New name"
    assert mirrored.link(OTHER_OFFER_ID) == f"https://go.example/c?sub=CLICK&to={encoded}"


async def test_a_bad_template_written_with_sql_leaves_out_that_merchants_offers_only(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    await insert_catalogue(admin)
    await mirrored.sync()
    change = "update merchants set tracking_template = %s where id = %s"
    await admin.execute(change, ["https://{url}/{click_id}", MERCHANT_ID])
    assert await mirrored.sync() == {OTHER_OFFER_ID}
    await insert_offer(admin, "01920000-0000-7000-8000-0000000000c3")
    assert await mirrored.sync() == {OTHER_OFFER_ID}
    await admin.execute(change, [TEMPLATE, MERCHANT_ID])
    assert len(await mirrored.sync()) == 3


@pytest.mark.parametrize(
    ("fallback_url", "expected"),
    [
        (
            "https://shop.example/दिवाली?a=%20b#c",
            "https://shop.example/%E0%A4%A6%E0%A4%BF%E0%A4%B5%E0%A4%BE%E0%A4%B2%E0%A5%80?a=%20b#c",
        ),
        ("https://shop.example/~a/[b]'!*", "https://shop.example/~a/[b]'!*"),
        ("https://shop.example/a\r\nset-cookie: b", None),
    ],
)
async def test_a_fallback_page_may_stand_in_a_header(
    admin: psycopg.AsyncConnection, mirrored: Mirrored, fallback_url: str, expected: str | None
) -> None:
    await insert_merchant(admin, fallback_url=fallback_url)
    await insert_offer(admin)
    await mirrored.sync()
    assert mirrored.offers[OFFER_ID].merchant.fallback_url == expected


async def test_a_transaction_that_commits_after_a_later_one_was_seen_is_not_missed(
    admin: psycopg.AsyncConnection, mirrored: Mirrored, database_url: str
) -> None:
    await insert_catalogue(admin)
    change = "update offers set url = %s where id = %s"
    async with await psycopg.AsyncConnection.connect(database_url) as slow:
        await slow.execute(change, ["https://slow.example/", OFFER_ID])
        await admin.execute(change, ["https://quick.example/", OTHER_OFFER_ID])
        await mirrored.sync()
        assert "quick.example" in mirrored.link(OTHER_OFFER_ID)
        assert "slow.example" not in mirrored.link()
        await slow.commit()
    await mirrored.sync()
    assert "slow.example" in mirrored.link()


async def test_an_older_cluster_is_loaded_in_full_and_what_it_lacks_is_dropped(
    admin: psycopg.AsyncConnection, mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored database has a lower horizon than the one that was seen before."""
    await insert_catalogue(admin)
    await mirrored.sync()
    missing = "01920000-0000-7000-8000-0000000000c9"
    mirrored.offers[missing] = mirrored.offers[OFFER_ID]
    mirrored.offers.pop(OTHER_OFFER_ID)
    assert await mirrored.sync() == {OFFER_ID, missing}
    monkeypatch.setattr(mirrored.mirror, "_since", 2**62)
    assert await mirrored.sync() == {OFFER_ID, OTHER_OFFER_ID}


@asynccontextmanager
async def running(mirrored: Mirrored) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mirrored.mirror.run)
        await until(lambda: mirrored.completions > 0)
        yield
        tasks.cancel_scope.cancel()


async def test_it_wakes_when_the_catalogue_changes(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    async with running(mirrored):
        await insert_catalogue(admin)
        await until(lambda: len(mirrored.offers) == 2)


async def test_without_a_notification_it_looks_again_every_so_often(
    admin: psycopg.AsyncConnection, database: Database
) -> None:
    await admin.execute("alter table merchants disable trigger merchants_notify")
    await admin.execute("alter table offers disable trigger offers_notify")
    mirrored = Mirrored(database, poll_seconds=0.02)
    async with running(mirrored):
        await insert_catalogue(admin)
        await until(lambda: len(mirrored.offers) == 2)


async def test_offers_grow_stale_only_after_their_time(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    await insert_catalogue(admin)
    await mirrored.sync()
    mirrored.clock.advance(300)
    assert mirrored.check() == (True, "2 offers")
    mirrored.clock.advance(1)
    assert mirrored.check() == (False, "2 offers, last refreshed 301 s ago")


async def test_while_postgresql_is_away_the_offers_stay_and_then_catch_up(
    stoppable_postgres: PostgresServer,
) -> None:
    await migrate(stoppable_postgres.url)
    await fill(stoppable_postgres.url)
    settings = DatabaseSettings(connect_timeout_seconds=0.3)
    async with open_database(stoppable_postgres.url, settings) as database:
        mirrored = Mirrored(database)
        async with running(mirrored):
            before = dict(mirrored.offers)
            await stoppable_postgres.stop()
            away = (True, "PostgreSQL is away; serving the offers last seen")
            await until(lambda: mirrored.check() == away)
            assert mirrored.offers == before
            mirrored.clock.advance(400)
            late = f"2 offers, last refreshed 400 s ago; {away[1]}"
            assert mirrored.check() == (False, late)
            await stoppable_postgres.start()
            await retire_all(stoppable_postgres.url)
            await until(lambda: all(o.ends_at == -FOREVER for o in mirrored.offers.values()))
            await until(lambda: mirrored.check() == (True, "2 offers"))


class CountingMirrored(Mirrored):
    """Polls often, and counts how often it tried."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(database, poll_seconds=0.02)
        self.tried = 0
        self._sync = self.mirror.sync
        monkeypatch.setattr(self.mirror, "sync", self._count)

    async def _count(self) -> None:
        self.tried += 1
        await self._sync()


async def test_a_catalogue_that_cannot_be_read_is_waited_for(
    admin: psycopg.AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert_catalogue(admin)
    settings = DatabaseSettings(statement_timeout_seconds=0.1)
    async with open_database(database_url, settings) as database:
        mirrored = CountingMirrored(database, monkeypatch)
        with capture_logs() as logs:
            async with running(mirrored):
                before = dict(mirrored.offers)
                async with admin.transaction():
                    await admin.execute("lock table offers in access exclusive mode")
                    cause = "canceling statement due to statement timeout"
                    locked = f"cannot be read: {cause}; serving the offers last seen"
                    await until(lambda: mirrored.check() == (True, locked))
                    completions, tried = mirrored.completions, mirrored.tried
                    await until(lambda: mirrored.tried >= tried + 2)
                    assert (mirrored.offers, mirrored.completions) == (before, completions)
                await until(lambda: mirrored.check() == (True, "2 offers"))
    assert [entry["event"] for entry in logs].count("catalogue cannot be refreshed") == 1


async def fill(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await insert_catalogue(connection)


async def retire_all(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("update offers set active = false")


async def test_an_outage_at_the_start_is_told_until_it_ends(
    stoppable_postgres: PostgresServer,
) -> None:
    await migrate(stoppable_postgres.url)
    await stoppable_postgres.stop()
    settings = DatabaseSettings(connect_timeout_seconds=0.3)
    async with open_database(stoppable_postgres.url, settings) as database:
        mirrored = Mirrored(database)
        away = (False, "PostgreSQL is away; serving the offers last seen")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mirrored.mirror.run)
            await until(lambda: mirrored.check() == away)
            assert mirrored.completions == 0
            await stoppable_postgres.start()
            await until(lambda: mirrored.check() == (True, "0 offers"))
            tasks.cancel_scope.cancel()


async def test_a_merchant_moved_by_slug_serves_under_its_new_one(
    admin: psycopg.AsyncConnection, mirrored: Mirrored
) -> None:
    await insert_catalogue(admin)
    await mirrored.sync()
    await admin.execute("update merchants set slug = 'moved' where id = %s", [OTHER_MERCHANT_ID])
    await mirrored.sync()
    slugs = {offer_id: entry.merchant.slug for offer_id, entry in mirrored.offers.items()}
    assert slugs == {OFFER_ID: "zenmart", OTHER_OFFER_ID: "moved"}
