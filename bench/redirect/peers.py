"""The peers: how each is started and how its clicks are counted."""

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

import anyio
from anyio.abc import Process

from bench.redirect.catalogue import Catalogue
from bench.redirect.databases import ClickCounter, Server, load_peers_catalogue
from bench.redirect.processes import (
    ProgramDied,
    find_program,
    first_redirect,
    free_port,
    program,
    ready,
    tail,
)

HERE = Path(__file__).parent
NGINX_CONFIG = HERE / "nginx" / "nginx.conf.in"

Kind = Literal["couponflow", "bun", "nginx"]


@dataclass(frozen=True, slots=True)
class Peer:
    """One contender of the bench."""

    name: str
    title: str
    kind: Kind
    variant: str
    """The couponflow server, the folder of the Bun peer, or nginx's number of workers."""
    store: str = ""
    """How the Bun peer inserts its batches, where it has a choice."""


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("couponflow", "couponflow (granian)", "couponflow", "granian"),
        Peer("couponflow_hypercorn", "couponflow (hypercorn)", "couponflow", "hypercorn"),
        Peer("bun_best", "Bun at its best", "bun", "bun_best"),
        Peer("bun_best_json", "Bun at its best, rows from JSON", "bun", "bun_best", store="json"),
        Peer("seed_flow", "the seed's flow in Bun", "bun", "seed_flow"),
        Peer("nginx", "nginx, constant 302, 1 worker", "nginx", "1"),
        Peer("nginx_2", "nginx, constant 302, 2 workers", "nginx", "2"),
    )
}


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that answers."""

    port: int
    process: Process
    clicks: ClickCounter | None
    """Where its clicks end up; nothing for nginx, which records none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the peers of one bench run on."""

    folder: Path
    server: Server
    catalogue: Catalogue
    template: str = "couponflow"
    """The database couponflow's turns are copied from."""


NEEDED: dict[Kind, tuple[str, ...]] = {
    "couponflow": (),
    "bun": ("bun", "redis-server"),
    "nginx": ("nginx",),
}


def find_programs(peers: list[Peer]) -> None:
    """Make sure that every program these peers need is installed, before anything is started."""
    for name in ("wrk", *(name for peer in peers for name in NEEDED[peer.kind])):
        find_program(name)


async def prepare(stage: Stage, peers: list[Peer]) -> None:
    """Check the programs and make the template databases the peers need."""
    find_programs(peers)
    kinds = {peer.kind for peer in peers}
    if "bun" in kinds:
        await load_peers_catalogue(await stage.server.create("bun"), stage.catalogue)
    if "couponflow" in kinds:
        url = await stage.server.create(stage.template)
        await import_catalogue(stage.folder, url, stage.catalogue)


def start_peer(stage: Stage, peer: Peer) -> contextlib.AbstractAsyncContextManager[Running]:
    """Run a peer on a fresh database; it answers when the block begins."""
    match peer.kind:
        case "couponflow":
            return _couponflow(stage, peer.variant)
        case "bun":
            return _bun(stage, peer)
        case "nginx":
            return _nginx(stage, peer.variant)


def couponflow_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "couponflow", *arguments]


def couponflow_environment(var: Path, **variables: str) -> dict[str, str]:
    """Return this process's environment with these couponflow settings and no others."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COUPONFLOW_") and name not in {"DATABASE_URL", "REDIS_URL"}
    }
    return {**kept, "COUPONFLOW_VAR_DIR": str(var), "COUPONFLOW_LOG_LEVEL": "warning", **variables}


async def import_catalogue(folder: Path, url: str, catalogue: Catalogue) -> float:
    """Migrate a database and import the catalogue into it; return the seconds the offers took."""
    log = folder / "import.log"
    environment = couponflow_environment(folder / "import-var", DATABASE_URL=url)
    seconds = 0.0
    for arguments in (
        ["migrate"],
        ["merchants", "import", str(catalogue.merchants_csv)],
        ["offers", "import", str(catalogue.offers_csv)],
    ):
        began = anyio.current_time()
        async with program(couponflow_command(*arguments), log, environment) as process:
            with anyio.fail_after(600):
                returncode = await process.wait()
        if returncode != 0:
            raise ProgramDied(f"couponflow {arguments[0]} ended with {returncode}:\n{tail(log)}")
        seconds = anyio.current_time() - began
    return seconds


@contextlib.asynccontextmanager
async def _couponflow(stage: Stage, server: str) -> AsyncIterator[Running]:
    port, log = free_port(), stage.folder / "couponflow.log"
    async with stage.server.turn(stage.template) as url:
        environment = couponflow_environment(
            fresh_folder(stage.folder, "couponflow-var"),
            DATABASE_URL=url,
            COUPONFLOW_REDIRECT_BIND=f"127.0.0.1:{port}",
            COUPONFLOW_REDIRECT_SERVER=server,
            # On, so that its cost is measured, but never reached.
            COUPONFLOW_REDIRECT_RATE_LIMIT_PER_MINUTE="100000000",
            COUPONFLOW_OPS_BIND=f"127.0.0.1:{free_port()}",
        )
        command = couponflow_command("run", "--roles=redirect,clicks")
        async with program(command, log, environment) as process:
            await first_redirect(process, log, port, stage.catalogue.sample_path)
            # Before that it refuses offers it has not read yet.
            await ready(process, log, port)
            yield Running(port, process, ClickCounter(url, "affiliate_clicks"))


@contextlib.asynccontextmanager
async def _bun(stage: Stage, peer: Peer) -> AsyncIterator[Running]:
    port, log = free_port(), stage.folder / f"{peer.name}.log"
    async with stage.server.turn("bun") as url, _redis(stage.folder) as socket:
        environment = {
            **os.environ,
            "NODE_ENV": "production",
            "DATABASE_URL": url,
            "REDIS_SOCKET": str(socket),
            "PORT": str(port),
            "STORE": peer.store,
        }
        command = [find_program("bun"), "run", str(HERE / peer.variant / "index.ts")]
        async with program(command, log, environment) as process:
            await first_redirect(process, log, port, stage.catalogue.sample_path)
            yield Running(port, process, ClickCounter(url, "clicks"))


@contextlib.asynccontextmanager
async def _redis(folder: Path) -> AsyncIterator[Path]:
    socket = folder / "redis.sock"
    command = [find_program("redis-server"), "--port", "0", "--unixsocket", str(socket)]
    # Nothing goes to disk: the fastest queue there is, to the peers' advantage.
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    log = folder / "redis.log"
    async with program(command, log) as process:
        with anyio.fail_after(10):
            while not socket.exists():
                if process.returncode is not None:
                    raise ProgramDied(f"redis-server ended:\n{tail(log)}")
                await anyio.sleep(0.01)
        yield socket


@contextlib.asynccontextmanager
async def _nginx(stage: Stage, workers: str) -> AsyncIterator[Running]:
    port, log = free_port(), stage.folder / "nginx.log"
    folder = fresh_folder(stage.folder, "nginx")
    config = folder / "nginx.conf"
    # One socket a worker, so that the kernel spreads the connections.
    listen_options = "" if workers == "1" else "reuseport"
    config.write_text(
        Template(NGINX_CONFIG.read_text()).substitute(
            workers=workers, folder=folder, port=port, listen_options=listen_options
        )
    )
    command = [find_program("nginx"), "-p", str(folder), "-c", str(config)]
    async with program(command, log) as process:
        await first_redirect(process, log, port, stage.catalogue.sample_path)
        yield Running(port, process, None)


def fresh_folder(parent: Path, name: str) -> Path:
    """Make an empty folder that nobody used before."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
