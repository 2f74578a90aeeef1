import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import psycopg
import pytest

from couponflow.kernel import postgres_socket
from couponflow.kernel.embedded_postgres import EmbeddedPostgresFailed, embedded_postgres
from couponflow.kernel.postgres_binaries import installed_binaries
from couponflow.kernel.postgres_data import binaries_for, owner_of
from couponflow.kernel.privileges import (
    Account,
    capability_to_pass,
    closed_folders,
    nobody,
)
from tests.kernel.postgres_holder import held
from tests.postgres_server import reachable_folder

pytestmark = pytest.mark.once

POLL_SECONDS = 0.01

PATIENCE_SECONDS = 30.0


@pytest.fixture
def var() -> Iterator[Path]:
    """A folder with a short path, as `COUPONFLOW_VAR_DIR` would be."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture
def data(var: Path) -> Path:
    return var / "postgres"


def server_pid(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def is_alive(pid: int) -> bool:
    """Tell whether the process is there, be it only as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_gone(pid: int) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while is_alive(pid):  # noqa: ASYNC110 - another process sets no event of ours
            await anyio.sleep(POLL_SECONDS)


async def value(url: str, sql: bytes) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute(sql)).fetchone()
        assert row is not None
        return row[0]


async def until_answers(url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                assert await value(url, b"select 1") == 1
            except psycopg.OperationalError:
                await anyio.sleep(POLL_SECONDS)
            else:
                return


async def execute(url: str, sql: bytes) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(sql)


def ordinary_user() -> Account | None:
    """Return whom to become to be no longer root, yet still reach the interpreter."""
    if os.geteuid() != 0:
        return None
    paths = [installed_binaries()[0].postgres, Path(sys.executable), Path(__file__)]
    return Account(*nobody(), capability_to_pass(closed_folders(paths)))


async def fail_in(data: Path) -> None:
    """Use a server, and let its block end with an error."""
    async with embedded_postgres(data, for_tests=True):
        raise ZeroDivisionError


async def test_what_was_stored_is_there_at_the_next_start(data: Path) -> None:
    async with embedded_postgres(data) as url:
        await execute(url, b"create table kept as select 42 as answer")
    async with embedded_postgres(data) as url:
        assert await value(url, b"select answer from kept") == 42


async def test_it_is_safe_unless_it_is_for_tests(var: Path) -> None:
    names = (b"fsync", b"full_page_writes", b"synchronous_commit")
    async with embedded_postgres(var / "safe") as url:
        assert [await value(url, b"show " + name) for name in names] == ["on"] * 3
        assert await value(url, b"show listen_addresses") == ""
        assert await value(url, b"show max_connections") == "50"
    async with embedded_postgres(var / "fast", for_tests=True) as url:
        assert [await value(url, b"show " + name) for name in names] == ["off"] * 3
        assert await value(url, b"show max_connections") == "200"


async def test_text_is_utf8_and_its_case_is_known(data: Path) -> None:
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, "select lower('ÄÉअ')".encode()) == "äéअ"


async def test_stopping_is_clean_and_leaves_no_process(data: Path) -> None:
    async with embedded_postgres(data, for_tests=True) as url:
        pid = server_pid(data)
        busy = await psycopg.AsyncConnection.connect(url)
        await busy.execute("select 1")
        assert os.getsid(pid) == pid  # so a terminal's Ctrl-C passes it by
    assert not is_alive(pid)
    assert not (data / "postmaster.pid").exists()
    await busy.close()
    assert "database system is shut down" in (data.parent / "postgres.log").read_text()


async def test_a_server_that_does_not_stop_is_killed_in_time_and_loses_nothing(data: Path) -> None:
    async with embedded_postgres(data, stop_seconds=lambda: 0.5) as url:
        await execute(url, b"create table kept as select 42 as answer")
        pid = server_pid(data)
        os.kill(pid, signal.SIGSTOP)
        begun_at = anyio.current_time()
    assert 0.5 <= anyio.current_time() - begun_at < 2
    assert not is_alive(pid)
    async with embedded_postgres(data) as url:
        assert await value(url, b"select answer from kept") == 42


async def test_the_blocks_own_error_leaves_as_it_is(data: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        await fail_in(data)
    assert not (data / "postmaster.pid").exists()


async def test_a_cancelled_block_still_stops_the_server(data: Path) -> None:
    with anyio.CancelScope() as scope:
        async with embedded_postgres(data, for_tests=True):
            pid = server_pid(data)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not is_alive(pid)


async def test_an_ordinary_user_can_run_it(var: Path, data: Path) -> None:
    account = ordinary_user()
    os.chmod(var, 0o777)
    with held(data, account) as holder:
        assert await value(holder.url, b"select 1") == 1
        uid = os.geteuid() if account is None else account.uid
        assert [os.stat(path).st_uid for path in (data, var / "postgres.log")] == [uid, uid]
        assert holder.leave() == 0
    assert not (data / "postmaster.pid").exists()


async def test_it_runs_below_a_folder_that_is_closed_to_others(var: Path) -> None:
    home = var / "home"
    home.mkdir(mode=0o700)
    data = home / "couponflow" / "var" / "postgres"
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, b"select 1") == 1
        if os.geteuid() == 0:
            assert data.stat().st_uid == nobody()[0]
    assert home.stat().st_mode & 0o777 == 0o700


async def test_a_killed_daemon_takes_its_server_along_and_the_next_one_reuses_the_data(
    data: Path,
) -> None:
    with held(data) as holder:
        await execute(holder.url, b"create table kept as select 42 as answer")
        pid = server_pid(data)
        holder.kill()
        if sys.platform == "linux":
            await until_gone(pid)
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, b"select answer from kept") == 42


async def test_a_killed_daemon_and_server_leave_data_that_recovers(data: Path) -> None:
    with held(data) as holder:
        await execute(holder.url, b"create table kept as select 42 as answer")
        os.kill(server_pid(data), signal.SIGKILL)
        holder.kill()
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, b"select answer from kept") == 42


async def test_a_server_of_another_process_is_used_and_left_running(data: Path) -> None:
    with held(data) as holder:
        pid = server_pid(data)
        async with embedded_postgres(data, for_tests=True) as url:
            assert url == holder.url
            assert server_pid(data) == pid
        assert await value(holder.url, b"select 1") == 1
        assert server_pid(data) == pid


async def test_when_the_other_process_ends_its_server_ours_takes_over(data: Path) -> None:
    with held(data) as holder:
        theirs = server_pid(data)
        async with embedded_postgres(data, for_tests=True) as url:
            assert holder.leave() == 0
            await until_answers(url)
            ours = server_pid(data)
            assert ours != theirs
    assert not is_alive(ours)


async def test_a_server_that_is_killed_is_started_again(data: Path) -> None:
    async with embedded_postgres(data) as url:
        await execute(url, b"create table kept as select 42 as answer")
        first = server_pid(data)
        os.kill(first, signal.SIGKILL)
        await until_gone(first)
        await until_answers(url)
        second = server_pid(data)
        assert await value(url, b"select answer from kept") == 42
    assert not is_alive(second)


async def test_two_first_starts_at_once_share_one_server(data: Path) -> None:
    identifiers: list[object] = []

    async def daemon(done: anyio.Event, other_done: anyio.Event) -> None:
        async with embedded_postgres(data, for_tests=True) as url:
            identifiers.append(
                await value(url, b"select system_identifier from pg_control_system()")
            )
            done.set()
            await other_done.wait()

    first, second = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(daemon, first, second)
        group.start_soon(daemon, second, first)
    assert len(identifiers) == 2
    assert len(set(identifiers)) == 1


async def test_what_a_killed_first_start_left_behind_is_cleared_away(data: Path) -> None:
    leftover = data.with_name("postgres.new")
    (leftover / "base").mkdir(parents=True)
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, b"select 1") == 1
    assert not leftover.exists()


async def test_an_empty_folder_is_made_use_of(data: Path) -> None:
    os.mkdir(data)
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, b"select 1") == 1


async def test_a_folder_with_other_files_is_refused_and_left_alone(data: Path) -> None:
    os.mkdir(data)
    (data / "precious.txt").write_text("mine")
    with pytest.raises(EmbeddedPostgresFailed, match="holds files but no PostgreSQL database"):
        async with embedded_postgres(data):
            pytest.fail("it started")
    assert os.listdir(data) == ["precious.txt"]
    assert (data / "precious.txt").read_text() == "mine"


async def test_a_server_that_cannot_start_shows_the_end_of_its_log(data: Path) -> None:
    async with embedded_postgres(data, for_tests=True):
        pass
    with (data / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = [\n")
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(EmbeddedPostgresFailed) as failed:
        async with embedded_postgres(data, for_tests=True):
            pytest.fail("it started")
    message = str(failed.value)
    assert f"does not start on {data}" in message
    assert "syntax error in file" in message
    assert "set DATABASE_URL" in message
    assert not (data / "postmaster.pid").exists()


async def test_a_place_where_nothing_can_be_made_is_told(var: Path) -> None:
    (var / "file").write_text("")
    with pytest.raises(EmbeddedPostgresFailed, match=r"cannot be prepared: .*COUPONFLOW_VAR_DIR"):
        async with embedded_postgres(var / "file" / "postgres"):
            pytest.fail("it started")


def test_data_of_a_version_without_binaries_is_refused_naming_both(data: Path) -> None:
    data.mkdir()
    (data / "PG_VERSION").write_text("13\n")
    newest = installed_binaries()[0].major
    with pytest.raises(
        EmbeddedPostgresFailed, match=rf"made by PostgreSQL 13, .* of PostgreSQL {newest}"
    ):
        binaries_for(data)


def test_data_of_an_older_version_gets_the_older_binaries(data: Path) -> None:
    data.mkdir()
    installed = installed_binaries()
    assert installed == sorted(installed, key=lambda binaries: -binaries.major)
    for binaries in installed:
        (data / "PG_VERSION").write_text(f"{binaries.major}\n")
        assert binaries_for(data) == binaries


def test_data_of_somebody_else_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.mkdir()
    ours = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: ours)
    with pytest.raises(
        EmbeddedPostgresFailed, match=f"belongs to user id {ours - 1}, and this is user id {ours}"
    ):
        owner_of(data)


async def test_a_path_too_long_for_a_socket_gets_a_private_short_folder(var: Path) -> None:
    data = var / ("deep" * 25) / "postgres"
    async with embedded_postgres(data, for_tests=True) as url:
        assert await value(url, b"select 1") == 1
        sockets = str(await value(url, b"show unix_socket_directories"))
        assert sockets != str(data)
        assert os.stat(sockets).st_mode & 0o777 == 0o700
        assert os.stat(sockets).st_uid == os.stat(data).st_uid
        with held(data) as holder:
            assert holder.url == url
    shutil.rmtree(sockets)


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_short_folder_that_others_may_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(postgres_socket.tempfile, "gettempdir", lambda: str(tmp_path))
    deep = Path("/nowhere") / ("deep" * 25)
    folder = postgres_socket.socket_folder(deep, None)
    assert folder.parent == tmp_path
    assert postgres_socket.socket_folder(deep, None) == folder
    folder.chmod(mode)
    with pytest.raises(EmbeddedPostgresFailed, match="not a private folder"):
        postgres_socket.socket_folder(deep, None)


def test_a_short_folder_that_is_a_link_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_socket.tempfile, "gettempdir", lambda: str(tmp_path))
    deep = Path("/nowhere") / ("deep" * 25)
    folder = postgres_socket.socket_folder(deep, None)
    folder.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(EmbeddedPostgresFailed, match="not a private folder"):
        postgres_socket.socket_folder(deep, None)


async def test_a_log_that_has_grown_large_starts_afresh(var: Path, data: Path) -> None:
    log = var / "postgres.log"
    with log.open("wb") as file:
        file.truncate(10 * 1024 * 1024 + 1)
    async with embedded_postgres(data, for_tests=True):
        assert 0 < log.stat().st_size < 100_000
    before = log.stat().st_size
    async with embedded_postgres(data, for_tests=True):
        assert log.stat().st_size > before
