"""Resident memory while clicks go through: it must stop growing."""

from collections.abc import Callable

import msgspec

from bench.redirect.load import run_load
from bench.redirect.measure import DRAIN_SECONDS, QUIET_SECONDS
from bench.redirect.peers import PEERS, Stage, prepare, start_peer
from bench.redirect.processes import resident_bytes
from bench.redirect.report import Goal, Sheet, count, megabytes

SLICE_SECONDS = 2.0
FLAT_WITHIN = 1.05


class Sample(msgspec.Struct, frozen=True):
    """The daemon's memory once all clicks so far are rows."""

    clicks: int
    resident_bytes: int


async def measure_memory(
    stage: Stage, clicks: int, step: int, announce: Callable[[str], None]
) -> list[Sample]:
    """Send clicks until there are as many as asked for, and read the memory at every step."""
    peer = PEERS["couponflow"]
    await prepare(stage, [peer])
    async with start_peer(stage, peer) as running:
        assert running.clicks is not None
        rows = await running.clicks.settled(1, DRAIN_SECONDS, QUIET_SECONDS)
        samples = [Sample(rows, resident_bytes(running.process.pid))]
        seed = 0
        while rows < clicks:
            target = min(clicks, (rows // step + 1) * step)
            while rows < target:
                seed += 1
                load = await run_load(running.port, stage.catalogue, SLICE_SECONDS, seed)
                rows = await running.clicks.reached(rows + load.requests, DRAIN_SECONDS)
            rows = await running.clicks.settled(rows, DRAIN_SECONDS, QUIET_SECONDS)
            samples.append(Sample(rows, resident_bytes(running.process.pid)))
            announce(f"{rows:>12,} clicks  {megabytes(samples[-1].resident_bytes)} MB")
    return samples


def memory_sheet(samples: list[Sample]) -> Sheet:
    rows = [[count(sample.clicks), megabytes(sample.resident_bytes)] for sample in samples]
    return Sheet("Resident memory of one daemon", ["clicks", "resident MB"], rows)


def memory_goals(samples: list[Sample]) -> list[Goal]:
    """Compare the last sample with the one at half of the clicks, when all caches are full.

    With too few samples there is nothing to compare, and no goal is reported.
    """
    *earlier, last = samples
    half = next((sample for sample in earlier if sample.clicks >= last.clicks / 2), None)
    if half is None:
        return []
    growth = last.resident_bytes / half.resident_bytes
    reached = (
        f"{megabytes(last.resident_bytes)} MB after {count(last.clicks)} clicks, "
        f"{megabytes(half.resident_bytes)} MB after {count(half.clicks)}"
    )
    goal = Goal("resident memory after a million clicks", "flat", reached, growth <= FLAT_WITHIN)
    return [goal]
