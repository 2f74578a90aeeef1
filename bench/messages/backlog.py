"""Whether a long queue slows its consumers: a million messages waiting against a thousand.

The queue is filled while nobody consumes. Then one worker process starts, and the clock runs from
its first handler to the acknowledgement of so many jobs. A queue shorter than that is filled and
drained again until as many have been done; the filling does not count.
"""

import statistics
from collections.abc import Mapping, Sequence

from bench.messages.turns import PEERS, Announce, Peer, Stage, Turn, prepare, run_peer
from bench.redirect.report import Goal, Sheet, count, spread

BACKLOG_PEERS = ("couponflow_redis", "couponflow_outbox")
LEAST_SHARE = 0.85
CONCURRENCY = 100
FILL_BATCH = 500


async def measure_backlog(
    stage: Stage,
    peers: Sequence[Peer],
    rounds: int,
    jobs: int,
    waiting: tuple[int, int],
    announce: Announce,
) -> list[Turn]:
    """Each peer with the short and with the long queue in every round, in alternating order."""
    prepare(peers)
    turns = []
    for number in range(rounds):
        for peer in peers:
            for depth in waiting if number % 2 == 0 else reversed(waiting):
                turn = await _take_turn(stage, peer, number, jobs, depth)
                turns.append(turn)
                announce(
                    f"round {number + 1}/{rounds}  {peer.title:20}{depth:>10,} waiting  "
                    f"{turn.figures['drain_per_second']:,.0f} a second"
                )
    return turns


async def _take_turn(stage: Stage, peer: Peer, number: int, jobs: int, depth: int) -> Turn:
    arguments = {
        "mode": "backlog",
        "jobs": jobs,
        "waiting": depth,
        "batch": FILL_BATCH,
        "producers": 4,
        "concurrency": CONCURRENCY,
    }
    name = f"{peer.name}-backlog-{depth}-{number}"
    async with stage.servers.turn(peer.servers) as urls:
        told = await run_peer(stage, peer, urls, arguments, name)
    return Turn(peer.name, number, f"{depth}", told.jobs, told.figures)


def backlog_sheet(turns: Sequence[Turn]) -> Sheet:
    rows = [
        [PEERS[name].title, f"{depth:,}", spread(rates, count)]
        for (name, depth), rates in _rates(turns).items()
    ]
    headings = ["", "waiting at first", "done a second"]
    return Sheet("Consume rate by backlog, median (least to most) of the rounds", headings, rows)


def backlog_goals(turns: Sequence[Turn]) -> list[Goal]:
    rates = _rates(turns)
    goals = []
    for name in dict.fromkeys(name for name, _ in rates):
        few, *_, many = sorted(depth for own, depth in rates if own == name)
        share = statistics.median(rates[name, many]) / statistics.median(rates[name, few])
        what = f"{PEERS[name].title}: {many:,} waiting against {few:,}"
        reached = f"{share:.2f} of the rate"
        goals.append(Goal(what, f"at least {LEAST_SHARE:g}", reached, share >= LEAST_SHARE))
    return goals


def _rates(turns: Sequence[Turn]) -> Mapping[tuple[str, int], list[float]]:
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in turns:
        rates.setdefault((turn.peer, int(turn.mode)), []).append(turn.figures["drain_per_second"])
    return dict(sorted(rates.items()))
