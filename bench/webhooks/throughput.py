"""The main bench: every peer once a round, interleaved, and the goals they are held to."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from bench.redirect.report import Goal, Sheet, count, megabytes, milliseconds, spread
from bench.webhooks.measure import Plan, Turn, take_turn
from bench.webhooks.peers import PEERS, Peer, Stage, prepare

OURS = "couponflow"
BUN = "bun_pg"
LEAST_RATIO = 1.2
P99_MAX_MS = 30.0

Announce = Callable[[str], None]


async def measure_throughput(
    stage: Stage, peers: Sequence[Peer], plan: Plan, announce: Announce
) -> list[Turn]:
    """Give every peer one turn a round; who begins rotates, so that no place is an advantage."""
    await prepare(stage, (peer.template for peer in peers))
    turns = []
    for number in range(plan.rounds):
        shift = number % len(peers)
        for peer in [*peers[shift:], *peers[:shift]]:
            turn = await take_turn(stage, peer, number, plan, peer.template)
            turns.append(turn)
            announce(
                f"round {number + 1}/{plan.rounds}  {peer.title:28}"
                f"{turn.load.per_second:>10,.0f} a second  p99 {turn.load.p99_ms:.2f} ms"
            )
    return turns


def throughput_sheet(turns: Sequence[Turn]) -> Sheet:
    rows = [
        [
            PEERS[name].title,
            spread([turn.load.per_second for turn in own], count),
            spread([turn.load.p50_ms for turn in own], milliseconds),
            spread([turn.load.p99_ms for turn in own], milliseconds),
            spread([turn.load.max_ms for turn in own], milliseconds),
            count(sum(turn.load.requests for turn in own)),
            count(sum(turn.rows for turn in own)),
            _processed(own),
            spread([turn.resident_bytes for turn in own], megabytes),
        ]
        for name, own in by_peer(turns).items()
    ]
    headings = ["", "events a second", "p50 ms", "p99 ms", "max ms", "events answered"]
    headings += ["rows in PostgreSQL", "acted on a second", "resident MB"]
    return Sheet("Throughput, median (least to most) of the rounds", headings, rows)


def _processed(own: Sequence[Turn]) -> str:
    processed = [turn.processed for turn in own if turn.processed is not None]
    if not processed:
        return ""
    during = statistics.median(each.during for each in processed)
    after = statistics.median(each.after for each in processed)
    return f"{count(during)}, then {count(after)}"


def throughput_goals(turns: Sequence[Turn]) -> list[Goal]:
    """Hold couponflow against Bun and the clock; nothing when it did not take part."""
    own = by_peer(turns)
    if OURS not in own:
        return []
    goals = []
    if BUN in own:
        ratio = median_rate(own[OURS]) / median_rate(own[BUN])
        what = f"events a second against {PEERS[BUN].title}"
        goal = f"at least {LEAST_RATIO:g} times"
        goals.append(Goal(what, goal, f"{ratio:.2f}", ratio >= LEAST_RATIO))
    p99 = statistics.median(turn.load.p99_ms for turn in own[OURS])
    goal = f"under {P99_MAX_MS:g} ms"
    goals.append(Goal("p99 at 64 connections", goal, f"{p99:.2f} ms", p99 < P99_MAX_MS))
    return goals


def by_peer(turns: Sequence[Turn]) -> Mapping[str, list[Turn]]:
    """Group the turns by peer, in the order of `PEERS`."""
    return {name: own for name in PEERS if (own := [turn for turn in turns if turn.peer == name])}


def median_rate(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.load.per_second for turn in turns)
