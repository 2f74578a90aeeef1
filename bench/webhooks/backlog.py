"""Whether a long memory slows the intake: a million events in `webhook_logs` against none."""

from collections.abc import Sequence
from pathlib import Path

from bench.redirect.processes import free_port
from bench.redirect.report import Goal, Sheet, count, milliseconds, spread
from bench.webhooks.measure import Plan, Turn, take_turn
from bench.webhooks.peers import PEERS, TIDY, Stage, prepare, run_sql, start_couponflow
from bench.webhooks.throughput import OURS, Announce, median_rate

EMPTY = "couponflow"
FULL = "couponflow_full"
LEAST_SHARE = 0.85
PAST_EVENTS = Path(__file__).with_name("backlog.sql").read_text()


async def measure_backlog(stage: Stage, rows: int, plan: Plan, announce: Announce) -> list[Turn]:
    """Measure couponflow with no rows and with so many, in alternating turns."""
    await prepare(stage, ["couponflow"])
    await _fill(stage, rows)
    announce(f"{rows:,} events written")
    turns = []
    for number in range(plan.rounds):
        for template in (EMPTY, FULL) if number % 2 == 0 else (FULL, EMPTY):
            turn = await take_turn(stage, PEERS[OURS], number, plan, template)
            turns.append(turn)
            announce(
                f"round {number + 1}/{plan.rounds}  {_title(template, rows):20}"
                f"{turn.load.per_second:>10,.0f} a second  p99 {turn.load.p99_ms:.2f} ms"
            )
    return turns


async def _fill(stage: Stage, rows: int) -> None:
    url = await stage.server.create(FULL, EMPTY)
    # It makes today's partition when it starts.
    log = stage.folder / "partitions.log"
    async with start_couponflow(stage, PEERS[OURS], url, free_port(), log):
        pass
    await run_sql(url, PAST_EVENTS, rows=rows)
    await run_sql(url, TIDY)


def backlog_sheet(turns: Sequence[Turn], rows: int) -> Sheet:
    cells = [
        [
            _title(template, rows),
            spread([turn.load.per_second for turn in own], count),
            spread([turn.load.p50_ms for turn in own], milliseconds),
            spread([turn.load.p99_ms for turn in own], milliseconds),
        ]
        for template, own in _by_template(turns).items()
    ]
    headings = ["", "events a second", "p50 ms", "p99 ms"]
    return Sheet("A long memory, median (least to most) of the rounds", headings, cells)


def backlog_goals(turns: Sequence[Turn], rows: int) -> list[Goal]:
    own = _by_template(turns)
    share = median_rate(own[FULL]) / median_rate(own[EMPTY])
    what = f"events a second with {rows:,} rows in webhook_logs instead of none"
    return [Goal(what, "within 15%", f"{share:.2f}", share >= LEAST_SHARE)]


def _by_template(turns: Sequence[Turn]) -> dict[str, list[Turn]]:
    return {
        template: [turn for turn in turns if turn.template == template]
        for template in (EMPTY, FULL)
    }


def _title(template: str, rows: int) -> str:
    return f"{rows:,} rows" if template == FULL else "no rows"
