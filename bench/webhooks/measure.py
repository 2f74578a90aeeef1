"""One turn of one peer: start, warm, load, and count every event in PostgreSQL."""

import anyio
import msgspec

from bench.redirect.databases import ClickCounter
from bench.redirect.load import CONNECTIONS, Load
from bench.redirect.processes import resident_bytes
from bench.webhooks.load import run_load
from bench.webhooks.peers import Peer, Running, Stage, start_peer
from bench.webhooks.processing import Processed, Processing

QUIET_SECONDS = 1.0


class EventsMiscounted(Exception):
    """The rows in PostgreSQL are not those of the events answered: some were lost, or made up."""


class Turn(msgspec.Struct, frozen=True):
    """What one peer did in one round."""

    peer: str
    round: int
    template: str
    """The database it began with."""
    load: Load
    rows: int
    """Events of the measured time in PostgreSQL."""
    resident_bytes: int
    """Memory of the peer's own process at the end of the load."""
    processed: Processed | None
    """Nothing for a peer that only takes events."""


class Plan(msgspec.Struct, frozen=True):
    """How long and how often."""

    rounds: int
    warm_seconds: int
    seconds: int


QUICK = Plan(rounds=1, warm_seconds=1, seconds=2)


async def take_turn(stage: Stage, peer: Peer, round_number: int, plan: Plan, template: str) -> Turn:
    """Run a peer for one round; raises when a row is missing for an event it answered."""
    async with start_peer(stage, peer, template) as running:
        at_first = await _settled_rows(running)
        warm = await run_load(running.port, stage.warm_requests, plan.warm_seconds)
        before = await _settled_rows(running)
        check_count(peer.title, warm.requests, before - at_first)
        processing = Processing(running.url) if peer.processes else None
        applied = await processing.applied() if processing else 0
        load = await run_load(running.port, stage.requests, plan.seconds)
        memory = resident_bytes(running.process.pid)
        processed = await processing.after_load(applied, load.seconds) if processing else None
        rows = await _settled_rows(running) - before
        check_count(peer.title, load.requests, rows)
    return Turn(peer.name, round_number, template, load, rows, memory, processed)


async def _settled_rows(running: Running) -> int:
    """Wait until no more rows come, and return their number, the same in each table."""
    counts = [await _settled(table) for table in running.tables]
    if len(set(counts)) != 1:
        told = ", ".join(
            f"{table.table} {count:,}" for table, count in zip(running.tables, counts, strict=True)
        )
        raise EventsMiscounted(f"there are different numbers of rows: {told}")
    return counts[0]


async def _settled(table: ClickCounter) -> int:
    count = await table.count()
    while True:
        await anyio.sleep(QUIET_SECONDS)
        before, count = count, await table.count()
        if count == before:
            return count


def check_count(title: str, answers: int, rows: int) -> None:
    """Hold the rows against the answers.

    wrk does not count what it had asked for when its time was over, at most one request a
    connection; the peer answered and stored those all the same.
    """
    if not answers <= rows <= answers + CONNECTIONS:
        raise EventsMiscounted(
            f"{title}: {rows:,} rows in PostgreSQL for {answers:,} answers counted by wrk"
        )
