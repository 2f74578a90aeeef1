"""The command line of the messages bench."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import click
import msgspec
from rich.console import Console

from bench.messages.backlog import BACKLOG_PEERS, backlog_goals, backlog_sheet, measure_backlog
from bench.messages.daemons import (
    DAEMONS_PEERS,
    DaemonsPlan,
    daemons_goals,
    daemons_sheet,
    measure_daemons,
)
from bench.messages.environments import InstallFailed, peer_versions
from bench.messages.latency import LATENCY_PEERS, latency_goals, latency_sheet
from bench.messages.latency import MODES as LATENCY_MODES
from bench.messages.servers import Servers, open_servers
from bench.messages.throughput import (
    MODES,
    OUTBOX_PEERS,
    REDIS_PEERS,
    outbox_goals,
    redis_goals,
    throughput_sheet,
)
from bench.messages.turns import PEERS, Peer, Plan, Stage, take_turns
from bench.redirect.machine import Machine, describe_machine
from bench.redirect.processes import ProgramDied, ProgramMissing
from bench.redirect.report import Goal, Report, Sheet, describe, goals_sheet

FAILURES = (ProgramMissing, ProgramDied, InstallFailed)
RESULTS = Path(__file__).with_name("results")
# What the redirect bench runs on and this one does not.
NOT_USED_HERE = ("bun", "nginx", "wrk")


@dataclass(frozen=True, slots=True)
class Options:
    """What every bench can be told."""

    keep: bool
    as_json: bool


Measured = tuple[list[Goal], object, Sheet]
Work = Callable[[Stage], Awaitable[Measured]]


def announce(line: str) -> None:
    """Say how far the bench is, out of the way of its result."""
    click.echo(line, err=True)


def make_folder() -> Path:
    # On a real disk, which /tmp need not be: a commit must cost what it costs.
    folder = Path(tempfile.mkdtemp(prefix="couponflow-bench-", dir="/var/tmp"))
    # PostgreSQL refuses to be root, so another account has to get at its folder.
    folder.chmod(0o755)
    return folder


@contextlib.asynccontextmanager
async def workplace(needed: frozenset[str], keep: bool) -> AsyncIterator[tuple[Stage, Machine]]:
    """Make a folder, start in it the servers that are needed, and remove it in the end."""
    folder = make_folder()
    try:
        async with open_servers(
            folder, redis="redis" in needed, postgres="postgres" in needed
        ) as servers:
            yield Stage(folder, servers), await _describe(servers)
    finally:
        if keep:
            announce(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _describe(servers: Servers) -> Machine:
    machine = await describe_machine(servers.postgres)
    own = {name: text for name, text in machine.versions.items() if name not in NOT_USED_HERE}
    own.pop("redis-server", None)
    if servers.redis is not None:
        own[servers.redis.name] = servers.redis.version
    return msgspec.structs.replace(machine, versions={**own, **peer_versions()})


def run_bench(bench: str, needed: frozenset[str], work: Work, options: Options) -> None:
    """Run a bench on uvloop, as couponflow itself runs, and publish what it found."""

    async def in_workplace() -> Report:
        async with workplace(needed, options.keep) as (stage, machine):
            goals, figures, sheet = await work(stage)
        sheets = [sheet, goals_sheet(goals)] if goals else [sheet]
        return Report(bench, machine, goals, msgspec.Raw(msgspec.json.encode(figures)), sheets)

    try:
        report = anyio.run(in_workplace, backend_options={"use_uvloop": True})
    except FAILURES as failure:
        click.echo(f"{type(failure).__name__}: {failure}", err=True)
        sys.exit(1)
    publish(report, options.as_json)


def publish(report: Report, as_json: bool) -> None:
    """Save the report as markdown and JSON under `results/` and show it."""
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{report.machine.taken_at:%Y%m%dT%H%M%SZ}-{report.bench}"
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    Path(f"{stem}.json").write_bytes(encoded)
    Path(f"{stem}.md").write_text(report.markdown())
    if as_json:
        click.echo(encoded.decode())
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(describe(report.machine), highlight=False)
    for sheet in report.sheets:
        console.print(sheet.table())
    console.print(f"Saved as {stem}.md and .json", highlight=False, soft_wrap=True)


def servers_of(peers: Sequence[Peer]) -> frozenset[str]:
    return frozenset(server for peer in peers for server in peer.servers)


def peers_option(names: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def parse(_context: click.Context, _parameter: click.Parameter, value: str) -> list[Peer]:
        unknown = [name for name in value.split(",") if name not in names]
        if unknown:
            raise click.BadParameter(
                f"unknown peer {', '.join(unknown)}; there are: {', '.join(names)}"
            )
        return [PEERS[name] for name in value.split(",")]

    return click.option(
        "--peers", default=",".join(names), show_default=True, callback=parse, help="By comma."
    )


rounds_option = click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
keep_option = click.option("--keep", is_flag=True, help="Leave the work folder with all logs.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not tables.")
jobs_option = click.option("--jobs", default=20_000, show_default=True, type=click.IntRange(1))
slow_jobs_option = click.option(
    "--slow-jobs",
    default=4_000,
    show_default=True,
    type=click.IntRange(1),
    help="Jobs for arq, saq and procrastinate, at most.",
)


@click.group()
def main() -> None:
    """Measure couponflow's messages beside job queues, on a machine that does nothing else."""


@main.command()
@peers_option(REDIS_PEERS)
@rounds_option
@jobs_option
@slow_jobs_option
@keep_option
@json_option
def redis(
    peers: list[Peer], rounds: int, jobs: int, slow_jobs: int, keep: bool, as_json: bool
) -> None:
    """Jobs through Redis: couponflow's streams, BullMQ, arq and saq."""
    plan = Plan(rounds, jobs, slow_jobs)

    async def work(stage: Stage) -> Measured:
        turns = await take_turns(stage, peers, MODES, plan, announce)
        return redis_goals(turns), turns, throughput_sheet(turns, "couponflow_redis")

    run_bench("redis", servers_of(peers), work, Options(keep, as_json))


@main.command()
@peers_option(OUTBOX_PEERS)
@rounds_option
@jobs_option
@slow_jobs_option
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Jobs in one transaction, or in one call of BullMQ's.",
)
@keep_option
@json_option
def outbox(
    peers: list[Peer], rounds: int, jobs: int, slow_jobs: int, batch: int, keep: bool, as_json: bool
) -> None:
    """Jobs published in transactions: couponflow's outbox and procrastinate, beside BullMQ."""
    plan = Plan(rounds, jobs, slow_jobs, batch)

    async def work(stage: Stage) -> Measured:
        turns = await take_turns(stage, peers, MODES, plan, announce)
        return outbox_goals(turns), turns, throughput_sheet(turns, "couponflow_outbox")

    run_bench("outbox", servers_of(peers), work, Options(keep, as_json))


@main.command()
@peers_option(LATENCY_PEERS)
@rounds_option
@click.option("--jobs", default=200, show_default=True, type=click.IntRange(2))
@keep_option
@json_option
def latency(peers: list[Peer], rounds: int, jobs: int, keep: bool, as_json: bool) -> None:
    """From publish to handler start, one job at a time with pauses."""
    plan = Plan(rounds, jobs, jobs, warm=100)

    async def work(stage: Stage) -> Measured:
        turns = await take_turns(stage, peers, LATENCY_MODES, plan, announce)
        return latency_goals(turns), turns, latency_sheet(turns)

    run_bench("latency", servers_of(peers), work, Options(keep, as_json))


@main.command()
@peers_option(BACKLOG_PEERS)
@rounds_option
@jobs_option
@click.option("--many", default=1_000_000, show_default=True, type=click.IntRange(1_000))
@click.option("--few", default=1_000, show_default=True, type=click.IntRange(1))
@keep_option
@json_option
def backlog(
    peers: list[Peer], rounds: int, jobs: int, many: int, few: int, keep: bool, as_json: bool
) -> None:
    """Consume rate with a million messages waiting, against a thousand."""
    work = partial(_backlog, peers=peers, rounds=rounds, jobs=jobs, waiting=(few, many))
    run_bench("backlog", servers_of(peers), work, Options(keep, as_json))


async def _backlog(
    stage: Stage, *, peers: list[Peer], rounds: int, jobs: int, waiting: tuple[int, int]
) -> Measured:
    turns = await measure_backlog(stage, peers, rounds, jobs, waiting, announce)
    return backlog_goals(turns), turns, backlog_sheet(turns)


@main.command()
@rounds_option
@click.option("--daemons", "many", default=3, show_default=True, type=click.IntRange(2))
@click.option("--concurrency", default=10, show_default=True, type=click.IntRange(1))
@click.option("--work-ms", default=5.0, show_default=True, type=click.FloatRange(0))
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.5))
@keep_option
@json_option
def daemons(
    rounds: int,
    many: int,
    concurrency: int,
    work_ms: float,
    seconds: float,
    keep: bool,
    as_json: bool,
) -> None:
    """Several consuming processes against one, with a handler that waits on I/O."""
    plan = DaemonsPlan(rounds, many, concurrency, work_ms, seconds)

    async def work(stage: Stage) -> Measured:
        turns = await measure_daemons(stage, plan, announce)
        return daemons_goals(turns), turns, daemons_sheet(turns)

    run_bench("daemons", servers_of(DAEMONS_PEERS), work, Options(keep, as_json))
