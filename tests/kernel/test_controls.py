import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from msgspec import UNSET, UnsetType
from structlog.testing import capture_logs

from couponflow.config import DatabaseSettings
from couponflow.kernel.controls import (
    ChannelControl,
    ChannelControls,
    ControlRefused,
    set_control,
)
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.migrations import migrate
from tests.postgres_server import PostgresServer
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, rows_of, until

LONGER_THAN_ANY_TEST = 600.0
ROWS = "select channel, paused, rate_per_second, concurrency, changed_by from channel_controls"
AUDIT = "select actor, action, subject, details from audit_logs order by id"
UNTOUCHED = {"paused": False, "rate_per_second": None, "concurrency": None}


def controls_of(
    database: Database, *, poll_seconds: float = LONGER_THAN_ANY_TEST
) -> ChannelControls:
    return ChannelControls(database, random.Random(1), poll_seconds=poll_seconds)


@asynccontextmanager
async def running(controls: ChannelControls) -> AsyncGenerator[None, None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(controls.run)
        yield
        tasks.cancel_scope.cancel()


async def loaded(controls: ChannelControls) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        await controls.loaded.wait()


async def pause(database: Database, channel: str = "emails", *, paused: bool = True) -> None:
    async with database.transaction() as connection:
        await set_control(connection, channel, paused=paused, actor="cli:asha")


# Saying something


async def test_what_is_given_changes_and_the_rest_stays(database: Database) -> None:
    async with database.transaction() as connection:
        first = await set_control(connection, "emails", rate_per_second=2.5, actor="cli:asha")
        second = await set_control(
            connection, "emails", paused=True, concurrency=7, actor="api:ravi"
        )
        third = await set_control(connection, "emails", rate_per_second=None, actor="cli:asha")
        other = await set_control(connection, "sms", paused=False, actor="cli:asha")
    assert first == ChannelControl(rate_per_second=2.5)
    assert second == ChannelControl(paused=True, rate_per_second=2.5, concurrency=7)
    assert third == ChannelControl(paused=True, concurrency=7)
    assert other == ChannelControl()
    assert sorted(await rows_of(database.url, ROWS)) == [
        ("emails", True, None, 7, "cli:asha"),
        ("sms", False, None, None, "cli:asha"),
    ]


async def test_who_said_it_is_written_down(database: Database) -> None:
    await pause(database)
    await pause(database, paused=False)
    async with database.transaction() as connection:
        await set_control(connection, "emails", concurrency=3, actor="api:ravi")
    paused, limited = UNTOUCHED | {"paused": True}, UNTOUCHED | {"concurrency": 3}
    assert await rows_of(database.url, AUDIT) == [
        ("cli:asha", "channel.pause", "emails", {"before": UNTOUCHED, "after": paused}),
        ("cli:asha", "channel.resume", "emails", {"before": paused, "after": UNTOUCHED}),
        ("api:ravi", "channel.limit", "emails", {"before": UNTOUCHED, "after": limited}),
    ]


RATE = "rate_per_second must be a number above 0, not"
CONCURRENCY = "concurrency must be a whole number from 1 to 2147483647, not"


@pytest.mark.parametrize(
    ("rate", "concurrency", "problem"),
    [
        (0.0, UNSET, f"{RATE} 0.0"),
        (-1.0, UNSET, f"{RATE} -1.0"),
        (float("nan"), UNSET, f"{RATE} nan"),
        (float("inf"), UNSET, f"{RATE} inf"),
        (UNSET, 0, f"{CONCURRENCY} 0"),
        (UNSET, 2**31, f"{CONCURRENCY} 2147483648"),
        (5.0, -1, f"{CONCURRENCY} -1"),
        (UNSET, UNSET, "nothing to change"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    database: Database, rate: float | UnsetType, concurrency: int | UnsetType, problem: str
) -> None:
    await pause(database)
    async with database.transaction() as connection:
        with pytest.raises(ControlRefused, match=f"^{problem}"):
            await set_control(
                connection,
                "emails",
                rate_per_second=rate,
                concurrency=concurrency,
                actor="cli:asha",
            )
    assert await rows_of(database.url, ROWS) == [("emails", True, None, None, "cli:asha")]
    assert len(await rows_of(database.url, AUDIT)) == 1


async def test_clicks_have_no_concurrency_but_a_rate(database: Database) -> None:
    async with database.transaction() as connection:
        with pytest.raises(ValueError, match=r"^the channel clicks has no concurrency: one"):
            await set_control(
                connection, "clicks", rate_per_second=5, concurrency=3, actor="cli:asha"
            )
    assert await rows_of(database.url, ROWS) == []
    async with database.transaction() as connection:
        await set_control(
            connection, "clicks", rate_per_second=5, concurrency=None, actor="cli:asha"
        )
    assert await rows_of(database.url, ROWS) == [("clicks", False, 5.0, None, "cli:asha")]


async def test_what_is_rolled_back_was_never_said(database: Database) -> None:
    async with database.connection() as connection, connection.transaction(force_rollback=True):
        await set_control(connection, "emails", paused=True, actor="cli:asha")
    assert await rows_of(database.url, ROWS) == []
    assert await rows_of(database.url, AUDIT) == []


async def test_two_who_speak_at_once_both_count(database: Database) -> None:
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        await set_control(connection, "emails", concurrency=3, actor="cli:asha")
        tasks.start_soon(pause, database)
        await until_waiting(database.url)
    assert await rows_of(database.url, ROWS) == [("emails", True, None, 3, "cli:asha")]
    details = await rows_of(database.url, "select details -> 'before' from audit_logs order by id")
    assert details == [(UNTOUCHED,), (UNTOUCHED | {"concurrency": 3},)]


async def until_waiting(url: str) -> None:
    """Return once somebody waits for a lock of somebody else."""
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with anyio.fail_after(PATIENCE_SECONDS):
        while await rows_of(url, waiting) != [(1,)]:  # noqa: ASYNC110 - it sets no event here
            await anyio.sleep(POLL_SECONDS)


# Hearing it


async def test_before_it_is_loaded_every_channel_has_the_default(database: Database) -> None:
    await pause(database)
    controls = controls_of(database)
    assert controls.of("emails") == ChannelControl()
    assert not controls.loaded.is_set()
    async with running(controls):
        await loaded(controls)
        assert controls.of("emails") == ChannelControl(paused=True)
        assert controls.of("sms") == ChannelControl()


async def test_every_daemon_hears_of_a_change(database: Database) -> None:
    here, there = controls_of(database), controls_of(database)
    async with running(here), running(there):
        await loaded(here)
        await loaded(there)
        async with database.transaction() as connection:
            await set_control(
                connection, "emails", paused=True, rate_per_second=4, concurrency=9, actor="cli:a"
            )
        wanted = ChannelControl(paused=True, rate_per_second=4.0, concurrency=9)
        await until(lambda: here.of("emails") == there.of("emails") == wanted)


async def test_without_a_notification_it_looks_every_so_often(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute("drop trigger channel_controls_notify on channel_controls")
    controls = controls_of(database, poll_seconds=0.02)
    async with running(controls):
        await loaded(controls)
        await pause(database)
        await until(lambda: controls.of("emails").paused)


async def test_a_row_that_is_deleted_says_nothing_any_more(database: Database) -> None:
    await pause(database)
    controls = controls_of(database)
    async with running(controls):
        await until(lambda: controls.of("emails").paused)
        async with database.connection() as connection:
            await connection.execute("delete from channel_controls")
        await until(lambda: controls.of("emails") == ChannelControl())


async def test_a_change_is_logged_and_told_once(database: Database) -> None:
    controls = controls_of(database, poll_seconds=0.01)
    changes = 0

    async def count() -> None:
        nonlocal changes
        while True:
            await controls.changed()
            changes += 1

    with capture_logs() as logs:
        async with running(controls), anyio.create_task_group() as tasks:
            await loaded(controls)
            tasks.start_soon(count)
            await pause(database, "sms", paused=False)
            await pause(database)
            await until(lambda: controls.of("emails").paused)
            await pause(database, paused=False)
            await until(lambda: not controls.of("emails").paused)
            tasks.cancel_scope.cancel()
    assert changes == 2
    assert [entry["paused"] for entry in logs if entry["event"] == "channel controlled"] == [
        True,
        False,
    ]


# Waiting for it


class Waiter:
    """Waits for something, and shows whether it has come."""

    def __init__(self, wait: Callable[[str], Awaitable[None]], channel: str = "emails") -> None:
        self._wait = wait
        self._channel = channel
        self.returned = False

    async def run(self) -> None:
        await self._wait(self._channel)
        self.returned = True


async def test_whoever_waits_hears_when_a_channel_is_paused_and_opened(database: Database) -> None:
    controls = controls_of(database)
    paused, opened = Waiter(controls.until_paused), Waiter(controls.until_open)
    async with running(controls), anyio.create_task_group() as tasks:
        await loaded(controls)
        tasks.start_soon(paused.run)
        await pause(database, "sms")
        await until(lambda: controls.of("sms").paused)
        assert not paused.returned
        await pause(database)
        await until(lambda: paused.returned)

        tasks.start_soon(opened.run)
        await pause(database, "sms", paused=False)
        await until(lambda: not controls.of("sms").paused)
        assert not opened.returned
        await pause(database, paused=False)
        await until(lambda: opened.returned)


async def test_a_channel_is_not_open_before_anybody_knows(database: Database) -> None:
    controls = controls_of(database)
    waiters = [Waiter(controls.until_open), Waiter(controls.until_open, "sms")]
    await pause(database)
    async with anyio.create_task_group() as tasks:
        for waiter in waiters:
            tasks.start_soon(waiter.run)
        await anyio.wait_all_tasks_blocked()
        assert [waiter.returned for waiter in waiters] == [False, False]
        tasks.start_soon(controls.run)
        await until(lambda: waiters[1].returned)
        assert not waiters[0].returned
        tasks.cancel_scope.cancel()


async def test_an_open_and_a_paused_channel_are_not_waited_for(database: Database) -> None:
    await pause(database)
    controls = controls_of(database)
    async with running(controls):
        await loaded(controls)
        with anyio.fail_after(PATIENCE_SECONDS):
            await controls.until_open("sms")
            await controls.until_paused("emails")


# PostgreSQL away


async def test_while_postgresql_is_away_what_was_said_last_holds(
    stoppable_postgres: PostgresServer,
) -> None:
    await migrate(stoppable_postgres.url)
    settings = DatabaseSettings(connect_timeout_seconds=0.3)
    async with open_database(stoppable_postgres.url, settings) as database:
        await pause(database)
        controls = controls_of(database)
        with capture_logs() as logs:
            async with running(controls):
                await loaded(controls)
                await stoppable_postgres.stop()
                stale = "channel controls cannot be read"
                await until(lambda: stale in [entry["event"] for entry in logs])
                assert controls.of("emails") == ChannelControl(paused=True)
                await stoppable_postgres.start()
                await pause(database, paused=False)
                await until(lambda: not controls.of("emails").paused)
    events = [entry["event"] for entry in logs]
    assert events.count(stale) == events.count("channel controls are read again") == 1


async def test_a_daemon_that_starts_while_postgresql_is_away_catches_up(
    stoppable_postgres: PostgresServer,
) -> None:
    await migrate(stoppable_postgres.url)
    settings = DatabaseSettings(connect_timeout_seconds=0.3)
    async with open_database(stoppable_postgres.url, settings) as database:
        await pause(database)
        await stoppable_postgres.stop()
        controls = controls_of(database)
        with capture_logs() as logs:
            async with running(controls):
                await until(lambda: bool(logs))
                assert not controls.loaded.is_set()
                await stoppable_postgres.start()
                await loaded(controls)
                assert controls.of("emails") == ChannelControl(paused=True)


async def test_a_table_that_cannot_be_read_is_waited_for(database: Database) -> None:
    await pause(database)
    controls = controls_of(database, poll_seconds=0.01)
    with capture_logs() as logs:
        async with running(controls):
            await loaded(controls)
            async with database.connection() as connection:
                await connection.execute("alter table channel_controls rename to elsewhere")
                await until(lambda: "channel controls cannot be read" in str(logs))
                assert controls.of("emails") == ChannelControl(paused=True)
                await connection.execute("alter table elsewhere rename to channel_controls")
            await until(lambda: "channel controls are read again" in str(logs))
