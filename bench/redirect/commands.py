"""The command line of the redirect bench."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import click
import msgspec

from bench.redirect.catalogue import make_catalogue
from bench.redirect.databases import ClicksInvented, ClicksMissing, Server, postgres_server
from bench.redirect.load import LoadFailed
from bench.redirect.machine import Machine, describe_machine
from bench.redirect.memory import measure_memory, memory_goals, memory_sheet
from bench.redirect.million_offers import measure_offers, offers_goals, offers_sheet
from bench.redirect.peers import PEERS, Peer, Stage
from bench.redirect.processes import ProgramDied, ProgramMissing
from bench.redirect.report import Goal, Report, Sheet, goals_sheet, publish
from bench.redirect.start import measure_start, start_goals, start_sheet
from bench.redirect.throughput import (
    QUICK,
    Plan,
    measure_throughput,
    throughput_goals,
    throughput_sheet,
)

FAILURES = (ProgramMissing, ProgramDied, LoadFailed, ClicksMissing, ClicksInvented)
OFFERS = 1_000


class Workplace(msgspec.Struct, frozen=True):
    """Where a bench works and on what."""

    folder: Path
    server: Server
    machine: Machine

    def stage(self) -> Stage:
        return Stage(self.folder, self.server, make_catalogue(self.folder / "catalogue", OFFERS))


def make_folder() -> Path:
    # On a real disk, which /tmp need not be: a commit must cost what it costs.
    folder = Path(tempfile.mkdtemp(prefix="couponflow-bench-", dir="/var/tmp"))
    # PostgreSQL refuses to be root, so another account has to get at its folder.
    folder.chmod(0o755)
    return folder


@contextlib.asynccontextmanager
async def workplace(keep: bool) -> AsyncIterator[Workplace]:
    """Make a folder, start PostgreSQL in it, and remove it in the end."""
    folder = make_folder()
    try:
        async with postgres_server(folder / "postgres") as server:
            yield Workplace(folder, server, await describe_machine(server))
    finally:
        if keep:
            announce(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def announce(line: str) -> None:
    """Say how far the bench is, out of the way of its result."""
    click.echo(line, err=True)


def run_bench(work: Callable[[Workplace], Awaitable[Report]], keep: bool, as_json: bool) -> None:
    """Run a bench on uvloop, as couponflow itself runs, and publish what it found."""

    async def in_workplace() -> Report:
        async with workplace(keep) as place:
            return await work(place)

    try:
        report = anyio.run(in_workplace, backend_options={"use_uvloop": True})
    except FAILURES as failure:
        click.echo(f"{type(failure).__name__}: {failure}", err=True)
        sys.exit(1)
    publish(report, as_json)


def make_report(
    bench: str, machine: Machine, goals: list[Goal], figures: object, sheet: Sheet
) -> Report:
    sheets = [sheet, goals_sheet(goals)] if goals else [sheet]
    return Report(bench, machine, goals, msgspec.Raw(msgspec.json.encode(figures)), sheets)


keep_option = click.option("--keep", is_flag=True, help="Leave the work folder with all logs.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not tables.")
rounds_option = click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
seconds_option = click.option(
    "--seconds", default=10, show_default=True, type=click.IntRange(1), help="Measured, a turn."
)
warm_option = click.option(
    "--warm", default=3, show_default=True, type=click.IntRange(1), help="Warm-up seconds a turn."
)
quick_option = click.option("--quick", is_flag=True, help="A smoke run: one short round.")


def parse_peers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[Peer]:
    unknown = [name for name in value.split(",") if name not in PEERS]
    if unknown:
        known = ", ".join(PEERS)
        raise click.BadParameter(f"unknown peer {', '.join(unknown)}; there are: {known}")
    return [PEERS[name] for name in value.split(",")]


@click.group()
def main() -> None:
    """Measure couponflow's redirect beside its peers, on a machine that does nothing else."""


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

    async def work(place: Workplace) -> Report:
        turns = await measure_throughput(place.stage(), peers, plan, announce)
        goals, sheet = throughput_goals(turns), throughput_sheet(turns)
        return make_report("throughput", place.machine, goals, turns, sheet)

    run_bench(work, keep, as_json)


@main.command()
@click.option("--many", default=1_000_000, show_default=True, type=click.IntRange(1_000))
@rounds_option
@seconds_option
@warm_option
@quick_option
@keep_option
@json_option
def offers(
    many: int, rounds: int, seconds: int, warm: int, quick: bool, keep: bool, as_json: bool
) -> None:
    """A million offers against a thousand: throughput and memory of couponflow."""
    plan = QUICK if quick else Plan(rounds, warm, seconds)

    async def work(place: Workplace) -> Report:
        results = await measure_offers(place.folder, place.server, many, plan, announce)
        goals, sheet = offers_goals(results), offers_sheet(results)
        return make_report("offers", place.machine, goals, results, sheet)

    run_bench(work, keep, as_json)


@main.command()
@click.option("--clicks", default=1_500_000, show_default=True, type=click.IntRange(1))
@click.option("--step", default=250_000, show_default=True, type=click.IntRange(1))
@keep_option
@json_option
def memory(clicks: int, step: int, keep: bool, as_json: bool) -> None:
    """Resident memory of a couponflow daemon as clicks go through it."""

    async def work(place: Workplace) -> Report:
        samples = await measure_memory(place.stage(), clicks, step, announce)
        goals, sheet = memory_goals(samples), memory_sheet(samples)
        return make_report("memory", place.machine, goals, samples, sheet)

    run_bench(work, keep, as_json)


@main.command()
@click.option("--times", default=3, show_default=True, type=click.IntRange(1))
@keep_option
@json_option
def start(times: int, keep: bool, as_json: bool) -> None:
    """Seconds from starting the demo to its first redirect."""

    async def work(place: Workplace) -> Report:
        starts = await measure_start(place.folder, times, announce)
        goals, sheet = start_goals(starts), start_sheet(starts)
        return make_report("start", place.machine, goals, starts, sheet)

    run_bench(work, keep, as_json)
