"""Whether more daemons do more: several consuming processes against one, waiting on I/O.

The stream is filled first. The processes then consume from it together; each counts what was
acknowledged to it within the same seconds of the machine's monotonic clock. A handler does nothing
but wait, and each process runs few at once, so that waiting and not the processor limits one.
"""

import statistics
import time
from collections.abc import Mapping, Sequence

import anyio
import msgspec

from bench.messages.turns import PEERS, Announce, Stage, Told, Turn, prepare, run_peer
from bench.redirect.processes import ProgramDied
from bench.redirect.report import Goal, Sheet, count, spread

DAEMONS_PEERS = (PEERS["couponflow_redis"],)
SETTLE_SECONDS = 6.0
"""From starting the processes until the clock runs: all their consumers are at work by then."""
IDLE_SECONDS_MAX = 0.5
LEAST_SHARE = 0.9
"""Of the exact multiple; near-linear."""


class DaemonsPlan(msgspec.Struct, frozen=True):
    """How many processes, and what each does."""

    rounds: int
    daemons: int
    concurrency: int
    work_ms: float
    seconds: float

    def fill(self, daemons: int) -> int:
        """How many jobs so many processes can do at most until the end, and some more."""
        most_per_second = self.concurrency * 1000 / max(self.work_ms, 0.1)
        return int(daemons * most_per_second * (self.seconds + SETTLE_SECONDS) * 1.1)


async def measure_daemons(stage: Stage, plan: DaemonsPlan, announce: Announce) -> list[Turn]:
    """One process and several in every round, in alternating order."""
    prepare(DAEMONS_PEERS)
    turns = []
    for number in range(plan.rounds):
        for daemons in (1, plan.daemons) if number % 2 == 0 else (plan.daemons, 1):
            turn = await _take_turn(stage, plan, number, daemons)
            turns.append(turn)
            announce(
                f"round {number + 1}/{plan.rounds}  {daemons} daemons  "
                f"{turn.figures['done_per_second']:,.0f} a second"
            )
    return turns


async def _take_turn(stage: Stage, plan: DaemonsPlan, number: int, daemons: int) -> Turn:
    (peer,) = DAEMONS_PEERS
    fill = {"mode": "fill", "jobs": plan.fill(daemons), "batch": 500, "producers": 4}
    told: list[Told] = []
    async with stage.servers.turn(peer.servers) as urls:
        await run_peer(stage, peer, urls, fill, f"fill-{daemons}-{number}")
        begin_at = time.monotonic() + SETTLE_SECONDS
        consume: dict[str, str | float] = {
            "mode": "consume",
            "jobs": 0,
            "concurrency": plan.concurrency,
            "work-ms": plan.work_ms,
            "seconds": plan.seconds,
            "begin-at": begin_at,
        }

        async def run_one(place: int) -> None:
            name = f"consume-{daemons}-{number}-{place}"
            told.append(await run_peer(stage, peer, urls, consume, name))

        async with anyio.create_task_group() as group:
            for place in range(daemons):
                group.start_soon(run_one, place)
    return Turn(peer.name, number, str(daemons), *_together(told, plan.seconds))


def _together(told: Sequence[Told], seconds: float) -> tuple[int, dict[str, float]]:
    idle = max(each.figures["idle_seconds"] for each in told)
    if idle > IDLE_SECONDS_MAX:
        raise ProgramDied(
            f"a consumer did nothing for the last {idle:.1f} s: the stream was empty too early, "
            "or it came to a halt; look into the logs with --keep"
        )
    jobs = sum(each.jobs for each in told)
    return jobs, {"done_per_second": jobs / seconds}


def daemons_sheet(turns: Sequence[Turn]) -> Sheet:
    rates = _rates(turns)
    alone = statistics.median(rates[1])
    rows = [
        [str(daemons), spread(own, count), f"{statistics.median(own) / alone:.2f}"]
        for daemons, own in rates.items()
    ]
    headings = ["daemons", "done a second", "times one"]
    return Sheet("Consume rate by daemons, median (least to most)", headings, rows)


def daemons_goals(turns: Sequence[Turn]) -> list[Goal]:
    rates = _rates(turns)
    many = max(rates)
    times = statistics.median(rates[many]) / statistics.median(rates[1])
    least = LEAST_SHARE * many
    return [Goal(f"{many} daemons against 1", f"near {many}", f"{times:.2f}", times >= least)]


def _rates(turns: Sequence[Turn]) -> Mapping[int, list[float]]:
    rates: dict[int, list[float]] = {}
    for turn in turns:
        rates.setdefault(int(turn.mode), []).append(turn.figures["done_per_second"])
    return dict(sorted(rates.items()))
