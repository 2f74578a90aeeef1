"""A real PostgreSQL of couponflow's own, started and stopped with the daemon."""

import contextlib
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import psycopg
import structlog

from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.child_process import ChildNotStarted, end, spawn
from couponflow.kernel.postgres_binaries import Binaries, EmbeddedPostgresFailed
from couponflow.kernel.postgres_data import account_for, binaries_for, make_if_missing, owner_of
from couponflow.kernel.postgres_log import PostgresLog
from couponflow.kernel.postgres_socket import PORT, running_server, socket_folder, url_of
from couponflow.kernel.privileges import Account

__all__ = ["STOP_SECONDS", "EmbeddedPostgresFailed", "embedded_postgres"]

STOP_SECONDS = 25.0
"""What the server has to stop when nobody is in a hurry."""

_START_SECONDS = 120.0  # recovery after a crash comes before the first connection
_FAILED_STARTS_MAX = 3
_POLL_SECONDS = 0.02
_SUPERVISION_SECONDS = 0.5
_RESTART_WAIT_MAX_SECONDS = 10.0
_SETTINGS = (
    "listen_addresses=",
    f"port={PORT}",
    "unix_socket_permissions=0700",
    "max_connections=50",
    "shared_buffers=128MB",
    "max_wal_size=1GB",
    "log_checkpoints=off",
)
# One server serves many tests, some of which run several daemons; the last value of a name holds.
_SETTINGS_FOR_TESTS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=200",
)
# Fast shutdown ends the sessions; immediate shutdown leaves a recovery to the next start.
_SHUTDOWN_SHARES = ((signal.SIGINT, 0.8), (signal.SIGQUIT, 0.2))
_REAP_SECONDS = 5.0  # a killed process is gone at once, unless the disk hangs
# Another server is on the folder, or has not quite left it: a reason to wait, not to give up.
_HELD_BY_ANOTHER = ("lock file", "pre-existing shared memory block")

_log = structlog.get_logger("couponflow.embedded_postgres")


@contextlib.asynccontextmanager
async def embedded_postgres(
    data: Path, *, for_tests: bool = False, stop_seconds: Callable[[], float] = lambda: STOP_SECONDS
) -> AsyncIterator[str]:
    """Run PostgreSQL on the folder `data` (made if missing) and yield the URL to connect with.

    A server that is already up on that folder, say of a second daemon, is used and left running;
    should it end, one of our own takes over. One that dies is started again, so connections break
    and come back. On Linux the server ends with this process, even after `kill -9`; elsewhere it
    lives on then, and is used by the next start. Enter from the main thread. Raises
    `EmbeddedPostgresFailed`. `for_tests` trades safety for speed: a power loss may then ruin the
    data, and a server that is killed forgets its last half second. `stop_seconds` is asked at the
    end of the block; a server that has not stopped by then is killed, and the next start recovers
    what it had committed.
    """
    server = await _prepare(data, for_tests)
    try:
        await server.start()
        async with _supervised(server):
            yield url_of(server.sockets)
    finally:
        await server.stop(stop_seconds())


async def _prepare(data: Path, for_tests: bool) -> "_Server":
    try:
        data = _absolute(data)
        log = PostgresLog(data.with_name("postgres.log"))
        owner = owner_of(data)
        binaries = binaries_for(data)
        account = account_for(data, owner, binaries)
        await make_if_missing(data, binaries, account, log)
        sockets = socket_folder(data, account)
        running_server(data)  # fails here, with its cause, if we may not look into the folder
        log.cut()
    except OSError as error:
        raise EmbeddedPostgresFailed(
            f"PostgreSQL's data folder {data} cannot be prepared: {error}; "
            "mend that, or set COUPONFLOW_VAR_DIR to another folder"
        ) from error
    settings = (*_SETTINGS, *(_SETTINGS_FOR_TESTS if for_tests else ()))
    return _Server(data, sockets, binaries, account, settings, log)


def _absolute(data: Path) -> Path:
    data.parent.mkdir(parents=True, exist_ok=True)
    return data.absolute()


@contextlib.asynccontextmanager
async def _supervised(server: "_Server") -> AsyncIterator[None]:
    """Keep `server` up while the block runs; the block's own error leaves as it is."""
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(server.supervise)
            yield
            group.cancel_scope.cancel()
    except BaseExceptionGroup as failed:
        # Supervision never fails, so an only error is the block's own.
        if len(failed.exceptions) == 1:
            only = failed.exceptions[0]
            raise only from only.__cause__
        raise


class _Server:
    """The one server of a data folder: ours when we started it, else somebody else's."""

    def __init__(
        self,
        data: Path,
        sockets: Path,
        binaries: Binaries,
        account: Account | None,
        settings: tuple[str, ...],
        log: PostgresLog,
    ) -> None:
        self.sockets = sockets
        self._data = data
        self._binaries = binaries
        self._account = account
        self._settings = settings
        self._log = log
        self._randomness = random.Random()  # noqa: S311 - jitter
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Return once a server on the data folder answers, whoever started it."""
        failed_starts = 0
        if not self._process_runs():
            self._process = None  # what it says in the log is not about this start
        with anyio.move_on_after(_START_SECONDS):
            while not await self._answers():
                if not self._process_runs():
                    if self._process is not None and not self._log.says(_HELD_BY_ANOTHER):
                        failed_starts += 1
                    if failed_starts == _FAILED_STARTS_MAX:
                        break
                    self._spawn()
                await anyio.sleep(_POLL_SECONDS)
            else:
                return
        raise EmbeddedPostgresFailed(
            f"PostgreSQL does not start on {self._data}; the end of {self._log.path} says:\n"
            f"{self._log.tail()}\nMend that, or set DATABASE_URL to another PostgreSQL."
        )

    async def supervise(self) -> None:
        """Start the server again whenever it is gone, for ever."""
        while True:
            await anyio.sleep(_SUPERVISION_SECONDS)
            if self._process_runs() or running_server(self._data) is not None:
                continue
            _log.error("postgres_ended", data=str(self._data), log=str(self._log.path))
            for wait in exponential_backoff(
                _SUPERVISION_SECONDS, _RESTART_WAIT_MAX_SECONDS, self._randomness
            ):
                if await self._started_again():
                    break
                await anyio.sleep(wait)
            _log.info("postgres_restarted", data=str(self._data))

    async def stop(self, seconds: float) -> None:
        """End the server if it is ours, without losing what it committed."""
        if self._process is not None:
            asked = [(number, seconds * share) for number, share in _SHUTDOWN_SHARES]
            await end(self._process, [*asked, (signal.SIGKILL, _REAP_SECONDS)])

    async def _started_again(self) -> bool:
        try:
            await self.start()
        except EmbeddedPostgresFailed as error:
            _log.error("postgres_restart_failed", error=str(error))
            return False
        return True

    def _process_runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _spawn(self) -> None:
        arguments = [part for setting in self._settings for part in ("-c", setting)]
        command = [self._binaries.postgres, "-D", self._data, "-k", self.sockets, *arguments]
        self._log.mark()
        try:
            with self._log.appending() as errors:
                self._process = spawn(command, self._account, signal.SIGINT, errors)
        except ChildNotStarted as error:
            raise EmbeddedPostgresFailed(
                f"{error} {self._log.tail()}\nMend that, or set DATABASE_URL to another PostgreSQL."
            ) from error

    async def _answers(self) -> bool:
        running = running_server(self._data)
        if running is None or not running.ready:
            return False
        try:
            connection = await psycopg.AsyncConnection.connect(
                url_of(running.sockets), connect_timeout=2
            )
        except psycopg.OperationalError:
            return False
        await connection.close()
        self.sockets = running.sockets
        return True
