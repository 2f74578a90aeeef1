"""The main bench: every peer once a round, interleaved, and the goals the ratios are held to."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import msgspec

from bench.redirect.measure import Turn, take_turn
from bench.redirect.peers import PEERS, Peer, Stage, prepare
from bench.redirect.report import Goal, Sheet, count, megabytes, milliseconds, spread

OURS = "couponflow"
# Of each family the faster one is held against us.
BUN_BEST = ("bun_best", "bun_best_json")
NGINX = ("nginx", "nginx_2")

Announce = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True):
    """How long and how often."""

    rounds: int
    warm_seconds: float
    seconds: float


QUICK = Plan(rounds=1, warm_seconds=1, seconds=2)


async def measure_throughput(
    stage: Stage, peers: list[Peer], plan: Plan, announce: Announce
) -> list[Turn]:
    """Give every peer one turn a round; who begins rotates, so that no place is an advantage."""
    await prepare(stage, peers)
    turns = []
    for round_number in range(plan.rounds):
        shift = round_number % len(peers)
        for peer in peers[shift:] + peers[:shift]:
            turn = await take_turn(stage, peer, round_number, plan.warm_seconds, plan.seconds)
            turns.append(turn)
            announce(
                f"round {round_number + 1}/{plan.rounds}  {peer.title:32}"
                f"{turn.load.per_second:>10,.0f} a second  p99 {turn.load.p99_ms:.2f} ms"
            )
    return turns


def throughput_sheet(turns: Sequence[Turn]) -> Sheet:
    rows = []
    for name, own in by_peer(turns).items():
        rows.append(
            [
                PEERS[name].title,
                spread([turn.load.per_second for turn in own], count),
                spread([turn.load.p50_ms for turn in own], milliseconds),
                spread([turn.load.p99_ms for turn in own], milliseconds),
                spread([turn.load.max_ms for turn in own], milliseconds),
                count(sum(turn.load.requests for turn in own)),
                _rows(own),
                _drained(own),
                _memory(own),
            ]
        )
    headings = ["", "redirects a second", "p50 ms", "p99 ms", "max ms", "clicks answered"]
    headings += ["rows in PostgreSQL", "all rows after s", "resident MB"]
    return Sheet("Throughput, median (least to most) of the rounds", headings, rows)


def _rows(own: Sequence[Turn]) -> str:
    rows = [turn.rows for turn in own if turn.rows is not None]
    return count(sum(rows)) if rows else "none kept"


def _drained(own: Sequence[Turn]) -> str:
    drained = [turn.drained_seconds for turn in own if turn.drained_seconds is not None]
    return spread(drained, lambda value: f"{value:.1f}") if drained else ""


def _memory(own: Sequence[Turn]) -> str:
    # nginx serves from worker processes of its own; the master's memory says nothing.
    if PEERS[own[0].peer].kind == "nginx":
        return ""
    return spread([turn.resident_bytes for turn in own], megabytes)


def throughput_goals(turns: Sequence[Turn]) -> list[Goal]:
    """Hold couponflow against each peer that took part; nothing when it did not itself."""
    own = by_peer(turns)
    if OURS not in own:
        return []
    ours = _median(own[OURS])
    goals = []
    for names, least in ((BUN_BEST, 2.0), (("seed_flow",), 12.0), (NGINX, 0.4)):
        present = [name for name in names if name in own]
        if present:
            best = max(present, key=lambda name: _median(own[name]))
            ratio = ours / _median(own[best])
            what = f"throughput against {PEERS[best].title}"
            goals.append(Goal(what, f"at least {least:g} times", f"{ratio:.2f}", ratio >= least))
    p99 = statistics.median(turn.load.p99_ms for turn in own[OURS])
    goals.append(Goal("p99 at 64 connections", "under 10 ms", f"{p99:.2f} ms", p99 < 10))
    return goals


def by_peer(turns: Sequence[Turn]) -> Mapping[str, list[Turn]]:
    """Group the turns by peer, in the order of `PEERS`."""
    return {name: own for name in PEERS if (own := [turn for turn in turns if turn.peer == name])}


def _median(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.load.per_second for turn in turns)
