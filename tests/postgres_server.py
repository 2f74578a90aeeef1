"""A PostgreSQL that a test may stop and start."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from couponflow.kernel.embedded_postgres import embedded_postgres


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """Make a folder with a short path that every user can reach, and remove it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="couponflow-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class PostgresServer:
    """A server whose folder outlives its stops; its URL never changes."""

    def __init__(self, data: Path, group: TaskGroup) -> None:
        self.data = data
        self.url = ""
        self._group = group
        self._stop = anyio.Event()
        self._stopped = anyio.Event()

    async def start(self) -> None:
        """Return when the server answers."""
        self._stop, self._stopped = anyio.Event(), anyio.Event()
        self.url = await self._group.start(self._run)

    async def stop(self) -> None:
        """Return when the server has ended; its connections are broken by then."""
        self._stop.set()
        await self._stopped.wait()

    # A task of its own, so that a test may start and stop inside any cancel scope.
    async def _run(self, *, task_status: TaskStatus[str]) -> None:
        async with embedded_postgres(self.data, for_tests=True) as url:
            task_status.started(url)
            await self._stop.wait()
        self._stopped.set()


@contextlib.asynccontextmanager
async def postgres_server() -> AsyncIterator[PostgresServer]:
    """Make a server that has yet to be started."""
    with reachable_folder() as folder:
        async with anyio.create_task_group() as group:
            yield PostgresServer(folder / "postgres", group)
            group.cancel_scope.cancel()
