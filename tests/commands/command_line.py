"""Running a command as an operator does, with an environment of the test's own."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any
from urllib.parse import urlencode

import anyio
from psycopg.conninfo import conninfo_to_dict

DEADLINE_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def _as_url(conninfo: str) -> str:
    """The address as settings want it; libpq knows other ways to write one."""
    if not conninfo or "://" in conninfo:
        return conninfo
    parts = conninfo_to_dict(conninfo)
    query = urlencode({name: str(parts[name]) for name in ("host", "port", "user")})
    return f"postgresql:///{parts['dbname']}?{query}"


class CommandLine:
    """Runs `couponflow` in a folder, with no settings but those given."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "COUPONFLOW_VAR_DIR": str(folder / "var"),
            "DATABASE_URL": _as_url(database_url),
            "COLUMNS": "200",
        }

    async def run(self, *arguments: str, **environment: str) -> Ended:
        return await self._run(arguments, environment, None)

    async def run_reading(self, file: Path, *arguments: str) -> Ended:
        """Run with the file as standard input."""
        with file.open("rb") as stream:
            return await self._run(arguments, {}, stream)

    async def _run(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdin: IO[bytes] | None
    ) -> Ended:
        command = [sys.executable, "-m", "couponflow", *arguments]
        with anyio.fail_after(DEADLINE_SECONDS):
            process = await anyio.run_process(
                command,
                stdin=DEVNULL if stdin is None else stdin,
                stdout=PIPE,
                stderr=PIPE,
                check=False,
                cwd=self.folder,
                env={**self._environment, **environment},
            )
        return Ended(process.returncode, process.stdout.decode(), process.stderr.decode())
