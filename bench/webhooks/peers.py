"""The peers: how each is started and where its events end up."""

import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import anyio
import psycopg
from anyio.abc import Process

from bench.redirect.databases import ClickCounter, Server
from bench.redirect.peers import couponflow_command, couponflow_environment, fresh_folder
from bench.redirect.processes import (
    ProgramDied,
    ProgramMissing,
    find_program,
    free_port,
    program,
    ready,
    tail,
)
from bench.webhooks.signed_requests import SECRET, Requests

HERE = Path(__file__).parent
BUN_PEER = HERE / "bun_pg"
BUN_SCHEMA = (BUN_PEER / "schema.sql").read_text()
ORDERS = (HERE / "orders.sql").read_text()
TIDY = "vacuum analyze"
"""As a database is in the long run, so that no turn pays for it."""
MIGRATE_SECONDS = 60.0
INTAKE = "webhooks"
EVERYTHING = "webhooks,inbox,checkout,cashback,email,sms"

Kind = Literal["couponflow", "bun"]
Template = Literal["couponflow", "everything", "bun"]
"""The databases that turns are copied from."""

TABLES: dict[Kind, tuple[str, ...]] = {
    "couponflow": ("webhook_logs", "webhook_events"),
    "bun": ("webhook_logs",),
}
"""Each must have a row for each event."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender of the bench."""

    name: str
    title: str
    kind: Kind
    roles: str = ""
    server: Literal["granian", "hypercorn"] = "granian"

    @property
    def template(self) -> Template:
        return "everything" if self.processes else self.kind

    @property
    def processes(self) -> bool:
        """Whether it also acts on the events it takes."""
        return self.roles == EVERYTHING


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("couponflow", "couponflow (granian)", "couponflow", INTAKE),
        Peer("couponflow_hypercorn", "couponflow (hypercorn)", "couponflow", INTAKE, "hypercorn"),
        Peer("bun_pg", "Bun with pg", "bun"),
        Peer("everything", "couponflow, processing too", "couponflow", EVERYTHING),
    )
}


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that answers."""

    port: int
    process: Process
    url: str
    """Of its database."""
    tables: Sequence[ClickCounter]


@dataclass(frozen=True, slots=True)
class Stage:
    """What the peers of one bench run on."""

    folder: Path
    server: Server
    redis_url: str
    warm_requests: Requests
    requests: Requests


def find_bun() -> str:
    """Return where Bun is: installed here, or else on PATH."""
    own = HERE / "node_modules" / ".bin" / "bun"
    found = str(own) if own.exists() else shutil.which("bun")
    if found is None or not (HERE / "node_modules" / "pg").exists():
        raise ProgramMissing(
            "bun or pg is not installed. Install them with: npm ci (in bench/webhooks)"
        )
    return found


def find_programs(peers: Sequence[Peer]) -> None:
    """Make sure that every program these peers need is installed, before anything is started."""
    find_program("wrk")
    if any(peer.kind == "bun" for peer in peers):
        find_bun()


async def bun_versions() -> dict[str, str]:
    """The versions of what the Bun peer is made of."""
    said = (await anyio.run_process([find_bun(), "--version"])).stdout.decode().strip()
    packages = json.loads((HERE / "package.json").read_text())["dependencies"]
    return {"bun": said, "pg": packages["pg"]}


async def prepare(stage: Stage, templates: Iterable[Template]) -> None:
    """Make these databases; the one for processing has the orders that are paid for."""
    for template in dict.fromkeys(templates):
        url = await stage.server.create(template)
        match template:
            case "couponflow":
                await _migrate(stage.folder, url)
            case "everything":
                await _migrate(stage.folder, url)
                for requests in (stage.warm_requests, stage.requests):
                    await run_sql(url, ORDERS, batch=requests.batch, orders=requests.count)
            case "bun":
                await run_sql(url, BUN_SCHEMA)
            case _:
                assert_never(template)
        await run_sql(url, TIDY)


async def run_sql(url: str, script: str, **values: str | int) -> None:
    """Run a script with these values put in."""
    for name, value in values.items():
        script = script.replace(f":{name}", str(value))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(script.encode())


@contextlib.asynccontextmanager
async def start_peer(stage: Stage, peer: Peer, template: str) -> AsyncIterator[Running]:
    """Run a peer on a copy of that database; it answers when the block begins."""
    port, log = free_port(), stage.folder / f"{peer.name}.log"
    async with stage.server.turn(template) as url:
        match peer.kind:
            case "couponflow":
                started = start_couponflow(stage, peer, url, port, log)
            case "bun":
                started = _start_bun(url, port, log)
            case _:
                assert_never(peer.kind)
        async with started as process:
            tables = [ClickCounter(url, table) for table in TABLES[peer.kind]]
            yield Running(port, process, url, tables)


@contextlib.asynccontextmanager
async def start_couponflow(
    stage: Stage, peer: Peer, url: str, port: int, log: Path
) -> AsyncIterator[Process]:
    """Run a daemon of couponflow on a database until the block ends; it is ready when it begins."""
    ops_port = free_port()
    environment = couponflow_environment(
        fresh_folder(stage.folder, "couponflow-var"),
        DATABASE_URL=url,
        RAZORPAY_WEBHOOK_SECRET=SECRET,
        COUPONFLOW_RAZORPAY_RATE_PER_SECOND="0",
        COUPONFLOW_WEBHOOKS_BIND=f"127.0.0.1:{port}",
        COUPONFLOW_WEBHOOKS_SERVER=peer.server,
        COUPONFLOW_OPS_BIND=f"127.0.0.1:{ops_port}",
    )
    if not peer.processes:
        # Else it has to process, too: without Redis, messages do not leave the process.
        environment["REDIS_URL"] = stage.redis_url
    async with program(couponflow_command("run", f"--roles={peer.roles}"), log, environment) as it:
        await ready(it, log, ops_port)
        yield it


@contextlib.asynccontextmanager
async def _start_bun(url: str, port: int, log: Path) -> AsyncIterator[Process]:
    environment = {
        **os.environ,
        "NODE_ENV": "production",
        "DATABASE_URL": url,
        "RAZORPAY_WEBHOOK_SECRET": SECRET,
        "PORT": str(port),
    }
    command = [find_bun(), "run", str(BUN_PEER / "index.ts")]
    async with program(command, log, environment) as process:
        await ready(process, log, port)
        yield process


async def _migrate(folder: Path, url: str) -> None:
    log = folder / "migrate.log"
    environment = couponflow_environment(folder / "migrate-var", DATABASE_URL=url)
    async with program(couponflow_command("migrate"), log, environment) as process:
        with anyio.fail_after(MIGRATE_SECONDS):
            returncode = await process.wait()
    if returncode != 0:
        raise ProgramDied(f"couponflow migrate ended with {returncode}:\n{tail(log)}")
