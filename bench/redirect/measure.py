"""One turn of one peer: start, warm, load, and count every click in PostgreSQL."""

import anyio
import msgspec

from bench.redirect.databases import ClicksInvented
from bench.redirect.load import CONNECTIONS, Load, run_load
from bench.redirect.peers import Peer, Running, Stage, start_peer
from bench.redirect.processes import resident_bytes

DRAIN_SECONDS = 120.0
QUIET_SECONDS = 1.0


class Turn(msgspec.Struct, frozen=True):
    """What one peer did in one round."""

    peer: str
    round: int
    load: Load
    rows: int | None
    """Clicks of the measured time in PostgreSQL; nothing for a peer that records none."""
    drained_seconds: float | None
    """From the end of the load until the answered clicks were all rows."""
    resident_bytes: int
    """Memory of the peer's own process at the end of the load."""


async def take_turn(
    stage: Stage, peer: Peer, round_number: int, warm_seconds: float, seconds: float
) -> Turn:
    """Run a peer for one round; raises when a click it answered is not a row."""
    async with start_peer(stage, peer) as running:
        warm = await run_load(running.port, stage.catalogue, warm_seconds, seed=round_number + 1000)
        before = await _rows(running, warm.requests)
        load = await run_load(running.port, stage.catalogue, seconds, seed=round_number)
        memory = resident_bytes(running.process.pid)
        ended = anyio.current_time()
        rows = drained = None
        if running.clicks is not None:
            await running.clicks.reached(before + load.requests, DRAIN_SECONDS)
            drained = anyio.current_time() - ended
            rows = await _rows(running, before + load.requests) - before
            check_count(peer.title, load.requests, rows)
    return Turn(peer.name, round_number, load, rows, drained, memory)


async def _rows(running: Running, at_least: int) -> int:
    if running.clicks is None:
        return 0
    return await running.clicks.settled(at_least, DRAIN_SECONDS, QUIET_SECONDS)


def check_count(title: str, requests: int, rows: int) -> None:
    """Hold the rows, already known to be enough, against the most that can have been answered.

    wrk does not count what it had asked for when its time was over, at most one request a
    connection; the peer answered and recorded those all the same.
    """
    if rows > requests + CONNECTIONS:
        raise ClicksInvented(
            f"{title}: {rows:,} rows in PostgreSQL for {requests:,} answers counted by wrk"
        )
