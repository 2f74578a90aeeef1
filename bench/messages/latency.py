"""Latency on an idle system: from the call that enqueues a job to the call of its handler."""

import statistics
from collections.abc import Sequence

from bench.messages.throughput import by_peer, values
from bench.messages.turns import PEERS, Turn
from bench.redirect.report import Goal, Sheet, count, milliseconds, spread

LATENCY_PEERS = tuple(PEERS)
MODES = ("latency",)
GOALS_MS = {"couponflow_memory": 5.0, "couponflow_redis": 5.0, "couponflow_outbox": 20.0}


def latency_sheet(turns: Sequence[Turn]) -> Sheet:
    rows = [
        [
            PEERS[name].title,
            count(sum(turn.jobs for turn in own)),
            *(spread(values(own, figure), milliseconds) for figure in ("p50_ms", "p99_ms")),
            milliseconds(max(values(own, "max_ms"))),
        ]
        for name, own in by_peer(turns).items()
    ]
    headings = ["", "jobs", "p50 ms", "p99 ms", "max ms"]
    return Sheet("Latency when idle, median (least to most) of the rounds", headings, rows)


def latency_goals(turns: Sequence[Turn]) -> list[Goal]:
    grouped = by_peer(turns)
    goals = []
    for name, limit in GOALS_MS.items():
        if name in grouped:
            p50 = statistics.median(values(grouped[name], "p50_ms"))
            what = f"{PEERS[name].title}: latency p50"
            goals.append(Goal(what, f"under {limit:g} ms", f"{p50:.2f} ms", p50 < limit))
    return goals
