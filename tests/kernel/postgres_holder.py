"""Another process that holds an embedded PostgreSQL: `python -m tests.kernel.postgres_holder DATA`.

It prints the URL once it has it, and leaves when its standard input ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread

from couponflow.kernel.embedded_postgres import embedded_postgres
from couponflow.kernel.privileges import Account, child_setup

_LEAVE_SECONDS = 30.0


class Holder:
    """The other process, seen from the test."""

    def __init__(self, data: Path, account: Account | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.postgres_holder", str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=child_setup(account, signal.SIGTERM),
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def leave(self) -> int:
        """End it in good order, its server with it, and return its exit code."""
        with self._process:
            if self._process.stdin is not None:
                self._process.stdin.close()
            return self._process.wait(_LEAVE_SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self.leave()


@contextlib.contextmanager
def held(data: Path, account: Account | None = None) -> Iterator[Holder]:
    """Hold a server in another process, run as `account`, that has ended when the block has."""
    holder = Holder(data, account)
    try:
        yield holder
    finally:
        holder.leave()


async def main(data: Path) -> None:
    async with embedded_postgres(data) as url:
        print(url, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), backend_options={"use_uvloop": True})
