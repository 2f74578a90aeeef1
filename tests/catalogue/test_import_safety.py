"""Imports: nothing is half done, whatever goes wrong, and progress is told."""

import os
import uuid
from pathlib import Path

import anyio
import psycopg
import pytest

from couponflow.catalogue.errors import ImportFailed, ImportRefused
from couponflow.catalogue.importing import ImportProgress, import_file
from couponflow.catalogue.store import try_import_lock
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import DatabaseAway
from tests.catalogue.importer import (
    OFFERS,
    USERS,
    Importer,
    counts,
    with_rows,
)
from tests.catalogue.tables import table


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file is empty"),
        ("\n\r\n", "the file is empty"),
        ("offer_uuid,email,mobile,name\n", "unknown column 'offer_uuid', did you mean user_uuid?"),
        ("user_uuid,email,mobile\n", "column name is missing"),
        (USERS.encode("utf-16"), "line 1: line holds the byte 0xff, which is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "line 1: line holds the byte 0x89"),
    ],
)
async def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    filled: Importer, content: str | bytes, reason: str
) -> None:
    before = await filled.tables()
    filled.rejects.write_text("what an earlier import left")
    with pytest.raises(ImportRefused, match=reason.replace("?", r"\?")):
        await filled("users", content)
    assert await filled.tables() == before
    assert filled.rejects.read_text() == "what an earlier import left"


async def test_a_header_alone_is_an_import_of_nothing(run: Importer) -> None:
    assert counts(await run("users", "user_uuid,email,mobile,name")) == (0, 0, 0, 0, 0)


async def test_a_file_that_cannot_be_read_is_refused(run: Importer, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ImportRefused, match=f"cannot be read: {reason}"):
            await import_file(
                "users",
                path,
                run.database,
                dry_run=False,
                rejects=run.rejects,
                progress=run.progress,
            )
    assert not run.rejects.exists()


async def test_a_rejects_file_that_cannot_be_written_is_refused(filled: Importer) -> None:
    before = await filled.tables()
    for rejects, reason in (
        (filled.file, "the rejects file must be another file than"),
        (filled.file.parent / "none" / "r.csv", "cannot be written: No such file or directory"),
    ):
        filled.rejects = rejects
        with pytest.raises(ImportRefused, match=reason):
            await filled("users", USERS.replace("Diya", "Deeya"))
    assert await filled.tables() == before


async def test_rejects_that_fill_the_disk_undo_the_import(filled: Importer) -> None:
    before = await filled.tables()
    # Every write to this device fails for want of space.
    os.symlink("/dev/full", filled.rejects.with_name(filled.rejects.name + ".unfinished"))
    with pytest.raises(ImportRefused, match="cannot be written: No space left on device"):
        await filled("users", USERS.replace("Diya", "Deeya") + "bad,,,\n")
    assert await filled.tables() == before
    assert not filled.rejects.exists()


@pytest.fixture
async def refusing(filled: Importer) -> Importer:
    """An importer whose database refuses the title `Poison` in the middle of the upsert."""
    async with filled.database.connection() as connection:
        await connection.execute(
            "create function refuse() returns trigger language plpgsql as"
            " $$ begin raise exception 'poisoned'; end $$"
        )
        await connection.execute(
            "create trigger refuse before insert on offers for each row"
            " when (new.title = 'Poison') execute function refuse()"
        )
    return filled


async def test_an_import_that_fails_midway_leaves_nothing(refusing: Importer) -> None:
    before = await refusing.tables()
    rows = [
        f"0197a3c2-7b1e-7c3d-9a2f-{number:012x},mitti,T{number},https://m.example/,,,"
        for number in range(100, 5_100)
    ]
    rows[2_500] = rows[2_500].replace("T2600", "Poison")
    with pytest.raises(ImportFailed, match="objected: poisoned; nothing was changed"):
        await refusing("offers", with_rows(OFFERS, *rows, "bad,mitti,T,https://m.example/,,,"))
    assert await refusing.tables() == before
    assert os.listdir(refusing.file.parent) == [refusing.file.name]
    report = await refusing("offers", with_rows(OFFERS, *rows).replace("Poison", "Good"))
    assert counts(report) == (5_000, 5_000, 0, 0, 0)


async def test_an_import_that_is_cancelled_leaves_nothing(filled: Importer) -> None:
    before = await filled.tables()
    with anyio.CancelScope() as scope:
        filled.progress = lambda _: scope.cancel()
        await filled("offers", OFFERS.replace("Planters", "Pots") + "bad,,,,,,\n")
    assert scope.cancelled_caught
    assert await filled.tables() == before
    assert os.listdir(filled.file.parent) == [filled.file.name]


async def test_an_import_whose_connection_breaks_leaves_nothing(filled: Importer) -> None:
    before = await filled.tables()

    def break_connections(_: ImportProgress) -> None:
        with psycopg.connect(filled.database.url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )

    filled.progress = break_connections
    with pytest.raises(DatabaseAway, match="the connection broke"):
        await filled("offers", OFFERS.replace("Planters", "Pots") + "bad,,,,,,\n")
    assert await filled.tables() == before
    assert os.listdir(filled.file.parent) == [filled.file.name]


async def test_two_imports_of_a_kind_do_not_run_at_once(filled: Importer) -> None:
    before = await filled.tables()
    async with filled.database.transaction() as connection:
        assert await try_import_lock(connection, "users")
        with pytest.raises(ImportRefused, match="another import of users is running"):
            await filled("users", USERS.replace("Diya", "Deeya"))
        assert await filled.tables() == before
        report = await filled("users", USERS.replace("Diya", "Deeya"), dry_run=True)
        assert counts(report) == (2, 0, 1, 1, 0)
        assert counts(await filled("offers", OFFERS)) == (2, 0, 0, 2, 0)
    assert counts(await filled("users", USERS.replace("Diya", "Deeya"))) == (2, 0, 1, 1, 0)


async def test_the_statement_timeout_is_lifted_for_the_import_alone(filled: Importer) -> None:
    async with filled.database.connection() as connection:
        await connection.execute(
            "create function refuse() returns trigger language plpgsql as"
            " $$ begin if current_setting('statement_timeout') <> '0' then"
            " raise exception 'limited'; end if; return new; end $$"
        )
        await connection.execute(
            "create trigger refuse before update on users for each row execute function refuse()"
        )
    assert counts(await filled("users", USERS.replace("Diya", "Deeya"))) == (2, 0, 1, 1, 0)
    async with filled.database.connection() as connection:
        with pytest.raises(psycopg.errors.RaiseException, match="limited"):
            await connection.execute("update users set name = 'Limited'")


class SteppingClock(ManualClock):
    """A clock on which each look at an interval takes a while."""

    def __init__(self, step_seconds: float) -> None:
        super().__init__()
        self._step_seconds = step_seconds

    def monotonic(self) -> float:
        self.advance(self._step_seconds)
        return super().monotonic()


async def progress_of_ten_thousand_rows(run: Importer, step_seconds: float) -> list[ImportProgress]:
    rows = [f"{uuid.UUID(int=number)},,,{'x' * 100}" for number in range(10_000)]
    run.clock = SteppingClock(step_seconds)
    await run("users", with_rows(USERS, *rows), dry_run=True)
    return run.steps


async def test_progress_goes_from_the_first_rows_to_the_end(run: Importer) -> None:
    progress = await progress_of_ten_thousand_rows(run, step_seconds=0.2)
    size = run.file.stat().st_size
    assert [(step.phase, step.rows) for step in progress] == [
        *(("reading", rows) for rows in (2_000, 4_000, 6_000, 8_000, 10_000, 10_000)),
        ("writing", 10_000),
    ]
    assert [step.bytes_read for step in progress] == sorted(step.bytes_read for step in progress)
    assert progress[0].bytes_read < size / 2
    assert progress[-1].bytes_read == size
    assert {step.bytes_total for step in progress} == {size}


async def test_progress_comes_at_most_ten_times_a_second(run: Importer) -> None:
    progress = await progress_of_ten_thousand_rows(run, step_seconds=0.06)
    assert [(step.phase, step.rows) for step in progress] == [
        ("reading", 4_000),
        ("reading", 8_000),
        ("reading", 10_000),
        ("writing", 10_000),
    ]


async def test_an_email_that_is_taken_meanwhile_fails_the_import_whole(filled: Importer) -> None:
    def take_the_email(progress: ImportProgress) -> None:
        if progress.phase == "reading":
            with psycopg.connect(filled.database.url, autocommit=True) as connection:
                connection.execute(
                    "insert into users (id, email) values (gen_random_uuid(), 'new@example.in')"
                )

    filled.progress = take_the_email
    with pytest.raises(ImportFailed, match=r"users_email.*already exists; nothing was changed"):
        await filled("users", USERS.replace("diya@", "NEW@").replace("Diya", "Deeya"))
    users = await table(filled.database, "users")
    assert sorted(str(row["email"]) for row in users) == [
        "None",
        "diya@example.in",
        "new@example.in",
    ]
