"""Who takes part, and how one turn of one of them is run."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import anyio
import msgspec

from bench.messages import environments
from bench.messages.servers import Servers
from bench.redirect.processes import ProgramDied, program, tail

Server = Literal["redis", "postgres"]
Kind = Literal["python", "javascript", "couponflow"]
Announce = Callable[[str], None]

TURN_SECONDS = 1200.0
PEERS_FOLDER = Path(__file__).parent / "peers"
COUPONFLOW_WORKER = Path(__file__).with_name("couponflow_worker.py")


class Peer(msgspec.Struct, frozen=True):
    """One queue that can be measured."""

    name: str
    title: str
    kind: Kind
    servers: tuple[Server, ...]
    """What it runs on; the first is where its messages are."""
    script: Path
    side: str = ""
    """Which of couponflow's ways to carry a message."""
    slow: bool = False
    """Given fewer jobs, so that a round does not last for minutes."""


def _couponflow(side: str, title: str, *servers: Server) -> Peer:
    # The daemon always has PostgreSQL: it keeps who works, what failed and what was done.
    return Peer(f"couponflow_{side}", title, "couponflow", servers, COUPONFLOW_WORKER, side)


def _python(name: str, server: Server) -> Peer:
    script = PEERS_FOLDER / f"{name}_peer.py"
    return Peer(name, name, "python", (server,), script, slow=True)


PEERS = {
    peer.name: peer
    for peer in (
        _couponflow("memory", "couponflow, memory", "postgres"),
        _couponflow("redis", "couponflow, Redis", "redis", "postgres"),
        _couponflow("outbox", "couponflow, outbox", "postgres"),
        Peer("bullmq", "BullMQ", "javascript", ("redis",), PEERS_FOLDER / "bullmq.cjs"),
        _python("arq", "redis"),
        _python("saq", "redis"),
        _python("procrastinate", "postgres"),
    )
}


class Told(msgspec.Struct, frozen=True):
    """The one line a queue's script prints."""

    jobs: int
    figures: dict[str, float]


class Turn(msgspec.Struct, frozen=True):
    """What one queue did in one mode of one round."""

    peer: str
    round: int
    mode: str
    jobs: int
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where turns are taken: a folder for logs, and the servers."""

    folder: Path
    servers: Servers


class Plan(msgspec.Struct, frozen=True):
    """How much of what."""

    rounds: int
    jobs: int
    slow_jobs: int
    batch: int = 1
    producers: int = 100
    concurrency: int = 100
    warm: int = 2_000

    def jobs_of(self, peer: Peer) -> int:
        return min(self.jobs, self.slow_jobs) if peer.slow else self.jobs


@dataclass(frozen=True, slots=True)
class _Command:
    words: Sequence[str]
    environment: dict[str, str]


def prepare(peers: Sequence[Peer]) -> None:
    """Install what these need, before anything is timed."""
    for peer in peers:
        _command(peer)


async def take_turns(
    stage: Stage, peers: Sequence[Peer], modes: Sequence[str], plan: Plan, announce: Announce
) -> list[Turn]:
    """Every peer once a round in each mode; who begins rotates, so no place is an advantage."""
    prepare(peers)
    turns = []
    for number in range(plan.rounds):
        shift = number % len(peers)
        for peer in [*peers[shift:], *peers[:shift]]:
            for mode in modes:
                turn = await take_turn(stage, peer, mode, number, plan)
                turns.append(turn)
                said = "  ".join(f"{name} {value:,.2f}" for name, value in turn.figures.items())
                announce(
                    f"round {number + 1}/{plan.rounds}  {peer.title:20}{turn.jobs:>8,} jobs  {said}"
                )
    return turns


async def take_turn(stage: Stage, peer: Peer, mode: str, number: int, plan: Plan) -> Turn:
    """Run a queue's script once, on emptied servers."""
    arguments = {
        "mode": mode,
        "jobs": plan.jobs_of(peer),
        "batch": plan.batch,
        "producers": plan.producers,
        "concurrency": plan.concurrency,
        "warm": plan.warm,
    }
    async with stage.servers.turn(peer.servers) as urls:
        told = await run_peer(stage, peer, urls, arguments, f"{peer.name}-{mode}-{number}")
    return Turn(peer.name, number, mode, told.jobs, told.figures)


async def run_peer(
    stage: Stage,
    peer: Peer,
    urls: Mapping[str, str],
    arguments: Mapping[str, str | float],
    name: str,
) -> Told:
    """Run a queue's script with these arguments; its log and its var folder get this name."""
    command = _command(peer)
    options = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    words = [*command.words, "--url", urls[peer.servers[0]], *options]
    # What a daemon of couponflow reads, too; the others do not look.
    told = {
        "DATABASE_URL": urls.get("postgres", ""),
        "REDIS_URL": urls.get("redis", ""),
        "COUPONFLOW_VAR_DIR": str(stage.folder / name),
    }
    return await run_script(words, stage.folder / f"{name}.log", {**command.environment, **told})


async def run_script(words: Sequence[str], log: Path, environment: dict[str, str]) -> Told:
    """Run a script to its end and read the last line it printed."""
    async with program(words, log, environment) as process:
        with anyio.move_on_after(TURN_SECONDS):
            await process.wait()
        ended = process.returncode
    line = last_line(log)
    if ended != 0 or not line.startswith("{"):
        raise ProgramDied(
            f"{Path(words[1]).name} ended with {ended} and told nothing; log:\n{tail(log)}"
        )
    return msgspec.json.decode(line, type=Told)


def last_line(log: Path) -> str:
    """Return the figures in a log; a library may have written more after them."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith('{"jobs"')), "")


def _command(peer: Peer) -> _Command:
    match peer.kind:
        case "javascript":
            runner = environments.javascript()
            return _Command([runner.program, str(peer.script)], runner.environment)
        case "python":
            python = environments.python_environment()
            return _Command([str(python), str(peer.script)], environments.python_path())
        case "couponflow":
            script = [sys.executable, str(peer.script), "--side", peer.side]
            return _Command(script, environments.python_path())
        case never:
            assert_never(never)
