"""Jobs a second: enqueued one by one by 100 producers and worked on, at once and one by one."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from bench.messages.turns import PEERS, Turn
from bench.redirect.report import Goal, Sheet, count, spread

REDIS_PEERS = ("couponflow_redis", "bullmq", "arq", "saq")
OUTBOX_PEERS = ("couponflow_outbox", "procrastinate", "bullmq")
MODES = ("mixed", "split")
COLUMNS = {
    "mixed_per_second": "both at once",
    "enqueue_per_second": "enqueue alone",
    "drain_per_second": "drain alone",
}


def by_peer(turns: Sequence[Turn]) -> Mapping[str, list[Turn]]:
    """Group the turns by peer, in the order of `PEERS`."""
    return {name: own for name in PEERS if (own := [turn for turn in turns if turn.peer == name])}


def values(turns: Sequence[Turn], figure: str) -> list[float]:
    """One figure of all the turns that have it."""
    return [turn.figures[figure] for turn in turns if figure in turn.figures]


def throughput_sheet(turns: Sequence[Turn], ours: str) -> Sheet:
    """One row a peer; each ratio is ours against theirs, of the medians."""
    grouped = by_peer(turns)
    rows = []
    for name, own in grouped.items():
        cells = [PEERS[name].title, count(max(turn.jobs for turn in own))]
        cells += [_spread(values(own, figure), count) for figure in COLUMNS]
        cells.append(_ratio_text(grouped, ours, name, "mixed_per_second"))
        rows.append(cells)
    headings = ["", "jobs", *(f"{title}, a second" for title in COLUMNS.values())]
    return Sheet(
        "Throughput, median (least to most) of the rounds", [*headings, "couponflow is"], rows
    )


def redis_goals(turns: Sequence[Turn]) -> list[Goal]:
    return ratio_goals(turns, "couponflow_redis", {"bullmq": 2.0})


def outbox_goals(turns: Sequence[Turn]) -> list[Goal]:
    return ratio_goals(turns, "couponflow_outbox", {"procrastinate": 10.0, "bullmq": 1.0})


def ratio_goals(turns: Sequence[Turn], ours: str, least: Mapping[str, float]) -> list[Goal]:
    """Hold our jobs a second against each peer's that took part; none if we did not."""
    grouped = by_peer(turns)
    goals = []
    for name, times in least.items():
        ratio = _ratio(grouped, ours, name, "mixed_per_second")
        if ratio is not None:
            what = f"{PEERS[ours].title}: jobs a second against {PEERS[name].title}"
            goals.append(Goal(what, f"at least {times:g} times", f"{ratio:.2f}", ratio >= times))
    return goals


def _ratio(
    grouped: Mapping[str, Sequence[Turn]], ours: str, theirs: str, figure: str
) -> float | None:
    mine, other = values(grouped.get(ours, ()), figure), values(grouped.get(theirs, ()), figure)
    return statistics.median(mine) / statistics.median(other) if mine and other else None


def _ratio_text(grouped: Mapping[str, Sequence[Turn]], ours: str, theirs: str, figure: str) -> str:
    ratio = None if ours == theirs else _ratio(grouped, ours, theirs, figure)
    return "" if ratio is None else f"{ratio:.2f} times"


def _spread(found: Sequence[float], form: Callable[[float], str]) -> str:
    return spread(found, form) if found else ""
