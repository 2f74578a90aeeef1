"""A thousand times the offers: does couponflow still answer as fast, and what does it cost."""

import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.redirect.catalogue import make_catalogue
from bench.redirect.databases import Server
from bench.redirect.measure import Turn, take_turn
from bench.redirect.peers import PEERS, Stage, find_programs, import_catalogue
from bench.redirect.report import Goal, Sheet, count, megabytes, milliseconds, spread
from bench.redirect.throughput import Plan

FEW = 1_000
WITHIN = 0.85
IMPORT_GOAL_SECONDS = 60.0


class Offers(msgspec.Struct, frozen=True):
    """What couponflow did with one number of offers."""

    offers: int
    import_seconds: float
    turns: list[Turn]

    @property
    def per_second(self) -> float:
        return statistics.median(turn.load.per_second for turn in self.turns)


async def measure_offers(
    folder: Path, server: Server, many: int, plan: Plan, announce: Callable[[str], None]
) -> list[Offers]:
    """Measure couponflow with a thousand offers and with many, in alternating turns."""
    peer = PEERS["couponflow"]
    find_programs([peer])
    stages, imports = [], []
    for offers in (FEW, many):
        catalogue = make_catalogue(folder / f"catalogue-{offers}", offers)
        stage = Stage(folder, server, catalogue, template=f"couponflow_{offers}")
        url = await server.create(stage.template)
        imports.append(await import_catalogue(folder, url, catalogue))
        announce(f"{offers:,} offers imported in {imports[-1]:.1f} s")
        stages.append(stage)
    turns: list[list[Turn]] = [[], []]
    for number in range(plan.rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            turn = await take_turn(stages[index], peer, number, plan.warm_seconds, plan.seconds)
            turns[index].append(turn)
            announce(
                f"round {number + 1}/{plan.rounds}  {stages[index].catalogue.offer_count:>9,} "
                f"offers{turn.load.per_second:>10,.0f} a second"
            )
    return [
        Offers(stage.catalogue.offer_count, seconds, own)
        for stage, seconds, own in zip(stages, imports, turns, strict=True)
    ]


def offers_sheet(results: list[Offers]) -> Sheet:
    rows = [
        [
            f"{result.offers:,} offers",
            spread([turn.load.per_second for turn in result.turns], count),
            spread([turn.load.p99_ms for turn in result.turns], milliseconds),
            spread([turn.resident_bytes for turn in result.turns], megabytes),
            f"{result.import_seconds:.1f}",
        ]
        for result in results
    ]
    headings = ["", "redirects a second", "p99 ms", "resident MB", "import s"]
    return Sheet("More offers, median (least to most) of the rounds", headings, rows)


def offers_goals(results: list[Offers]) -> list[Goal]:
    few, many = results
    ratio = many.per_second / few.per_second
    memory = statistics.median(turn.resident_bytes for turn in many.turns)
    return [
        Goal(
            f"throughput with {many.offers:,} offers instead of {few.offers:,}",
            "within 15%",
            f"{ratio:.2f}, at {megabytes(memory)} MB",
            ratio >= WITHIN,
        ),
        Goal(
            f"import of {many.offers:,} offers",
            "under a minute",
            f"{many.import_seconds:.1f} s",
            many.import_seconds < IMPORT_GOAL_SECONDS,
        ),
    ]
