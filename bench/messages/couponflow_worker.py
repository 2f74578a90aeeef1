"""couponflow's own turn: the harness's modes, and three of its own.

`backlog` drains a long queue, `fill` leaves one for others, `consume` is one daemon of several.
"""

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.messages.couponflow_side import OpenCouponflow, opener
from bench.messages.harness import (
    Figures,
    Run,
    Tally,
    argument_parser,
    enqueue_all,
    measure,
    tell,
)

MODES = ("mixed", "split", "latency", "backlog", "fill", "consume")
SPARE_CAPACITY = 20_000


@dataclass(frozen=True, slots=True)
class Options:
    """What only couponflow is asked to do."""

    side: str
    waiting: int
    """Messages in the queue when the draining of `backlog` begins."""
    work_ms: float
    seconds: float
    begin_at: float
    """On the machine's monotonic clock: when `consume` begins to count."""


def main() -> None:
    # What it logs would be mistaken for noise of the peers; warnings stay.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    run, options = _read_arguments()
    capacity = max(run.jobs, options.waiting) + SPARE_CAPACITY
    open_queue = opener(options.side, capacity=capacity, work_seconds=options.work_ms / 1000)
    match run.mode:
        case "backlog":
            tell(run, uvloop.run(_backlog(open_queue, run, options)))
        case "fill":
            tell(run, uvloop.run(_fill(open_queue, run)))
        case "consume":
            done, figures = uvloop.run(_consume(open_queue, run, options))
            tell(replace(run, jobs=done), figures)
        case _:
            tell(run, uvloop.run(measure(open_queue, run)))


def _read_arguments() -> tuple[Run, Options]:
    parser: argparse.ArgumentParser = argument_parser(MODES)
    parser.add_argument("--side", choices=["memory", "redis", "outbox"], required=True)
    parser.add_argument("--waiting", type=int, default=0)
    parser.add_argument("--work-ms", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--begin-at", type=float, default=0.0)
    given = vars(parser.parse_args())
    own = {name: given.pop(name) for name in Options.__slots__}
    return Run(**given), Options(**own)


async def _fill(open_queue: OpenCouponflow, run: Run) -> Figures:
    async with open_queue(run, Tally()) as queue:
        began = time.perf_counter()
        await enqueue_all(queue, run, run.jobs)
        return {"enqueue_per_second": run.jobs / (time.perf_counter() - began)}


async def _backlog(open_queue: OpenCouponflow, run: Run, options: Options) -> Figures:
    """Fill and drain until `jobs` are done; only the draining counts."""
    tally = Tally()
    done, seconds, filling = 0, 0.0, 0.0
    async with open_queue(run, tally) as queue:
        while done < run.jobs:
            began = time.perf_counter()
            await enqueue_all(queue, run, options.waiting)
            filling += time.perf_counter() - began
            drained = min(options.waiting, run.jobs)
            tally.expect(drained)
            async with queue.worker():
                await tally.acknowledged()
                seconds += time.perf_counter() - tally.first_started_at
            done += drained
    return {"drain_per_second": done / seconds, "fill_seconds": filling}


async def _consume(open_queue: OpenCouponflow, run: Run, options: Options) -> tuple[int, Figures]:
    """Consume from now on, and count what is acknowledged in the given seconds."""
    tally = Tally()
    async with open_queue(run, tally) as queue, queue.worker():
        await asyncio.sleep(max(0.0, options.begin_at - time.monotonic()))
        before = tally.total
        await asyncio.sleep(options.seconds)
        done = tally.total - before
        idle = time.perf_counter() - tally.started_at
    return done, {"idle_seconds": idle}


if __name__ == "__main__":
    main()
