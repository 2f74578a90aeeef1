"""The command line of the webhooks bench."""

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import click
import msgspec
from rich.console import Console

from bench.messages.servers import redis_server
from bench.redirect.commands import (
    Workplace,
    announce,
    json_option,
    keep_option,
    make_report,
    quick_option,
    rounds_option,
    seconds_option,
    warm_option,
    workplace,
)
from bench.redirect.load import LoadFailed
from bench.redirect.machine import Machine
from bench.redirect.processes import ProgramDied, ProgramMissing
from bench.redirect.report import Report, describe
from bench.webhooks.backlog import backlog_goals, backlog_sheet, measure_backlog
from bench.webhooks.measure import QUICK, EventsMiscounted, Plan
from bench.webhooks.peers import PEERS, Peer, Stage, bun_versions, find_programs
from bench.webhooks.processing import NotProcessed
from bench.webhooks.signed_requests import Requests, write_requests
from bench.webhooks.throughput import (
    OURS,
    measure_throughput,
    throughput_goals,
    throughput_sheet,
)

FAILURES = (ProgramMissing, ProgramDied, LoadFailed, EventsMiscounted, NotProcessed)
RESULTS = Path(__file__).with_name("results")
EVENTS_PER_SECOND = 25_000
"""More than a peer can take on two cores; one that can fails the bench."""
VERSIONS = ("couponflow", "python", "postgresql", "wrk")

Work = Callable[[Stage, Machine], Awaitable[Report]]


@contextlib.asynccontextmanager
async def _stage(place: Workplace, plan: Plan) -> AsyncIterator[Stage]:
    """Sign the events, the same for every turn, and start Redis."""
    warm = await _sign(place.folder, "Warm", plan.warm_seconds)
    requests = await _sign(place.folder, "Main", plan.seconds)
    async with redis_server(place.folder) as redis:
        yield Stage(place.folder, place.server, redis.url, warm, requests)


async def _sign(folder: Path, batch: str, seconds: int) -> Requests:
    path, count = folder / f"requests-{batch}", seconds * EVENTS_PER_SECOND
    return await anyio.to_thread.run_sync(write_requests, path, batch, count)


async def _describe(machine: Machine) -> Machine:
    own = {name: machine.versions[name] for name in VERSIONS if name in machine.versions}
    with contextlib.suppress(ProgramMissing):
        own |= await bun_versions()
    return msgspec.structs.replace(machine, versions=own)


def run_bench(plan: Plan, work: Work, keep: bool, as_json: bool) -> None:
    """Run a bench on uvloop, as couponflow itself runs, and publish what it found."""

    async def in_workplace() -> Report:
        async with workplace(keep) as place:
            machine = await _describe(place.machine)
            async with _stage(place, plan) as stage:
                return await work(stage, machine)

    try:
        report = anyio.run(in_workplace, backend_options={"use_uvloop": True})
    except FAILURES as failure:
        click.echo(f"{type(failure).__name__}: {failure}", err=True)
        sys.exit(1)
    publish(report, as_json)


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


def parse_peers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[Peer]:
    unknown = [name for name in value.split(",") if name not in PEERS]
    if unknown:
        known = ", ".join(PEERS)
        raise click.BadParameter(f"unknown peer {', '.join(unknown)}; there are: {known}")
    return [PEERS[name] for name in value.split(",")]


@click.group()
def main() -> None:
    """Measure couponflow's webhook intake beside Bun, on a machine that does nothing else."""


@main.command()
@click.option(
    "--peers", default=",".join(PEERS), show_default=True, callback=parse_peers, help="By comma."
)
@rounds_option
@seconds_option
@warm_option
@quick_option
@keep_option
@json_option
def throughput(
    peers: list[Peer],
    rounds: int,
    seconds: int,
    warm: int,
    quick: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Every peer side by side, in interleaved rounds."""
    plan = QUICK if quick else Plan(rounds, warm, seconds)

    async def work(stage: Stage, machine: Machine) -> Report:
        find_programs(peers)
        turns = await measure_throughput(stage, peers, plan, announce)
        goals, sheet = throughput_goals(turns), throughput_sheet(turns)
        return make_report("throughput", machine, goals, turns, sheet)

    run_bench(plan, work, keep, as_json)


@main.command()
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(1_000))
@rounds_option
@seconds_option
@warm_option
@quick_option
@keep_option
@json_option
def backlog(
    rows: int, rounds: int, seconds: int, warm: int, quick: bool, keep: bool, as_json: bool
) -> None:
    """A million events already stored against none."""
    plan = QUICK if quick else Plan(rounds, warm, seconds)

    async def work(stage: Stage, machine: Machine) -> Report:
        find_programs([PEERS[OURS]])
        turns = await measure_backlog(stage, rows, plan, announce)
        goals, sheet = backlog_goals(turns, rows), backlog_sheet(turns, rows)
        return make_report("backlog", machine, goals, turns, sheet)

    run_bench(plan, work, keep, as_json)
