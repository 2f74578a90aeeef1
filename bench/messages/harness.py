"""What is measured of every queue, in the same way for all.

Peers import this from environments of their own, so it needs nothing but Python and uvloop.
`peers/bullmq.cjs` does the same in JavaScript.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import uvloop

Payload = Mapping[str, str]
Figures = dict[str, float]

DEADLINE_SECONDS = 900.0
"""A queue that has not finished by then lost a job, or is too slow to be measured."""
PAUSE_SECONDS = (0.02, 0.08)
"""Between two jobs of the latency mode: uneven, so that nobody's polling falls into step."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one turn is asked to do."""

    mode: str
    """`mixed`, `split` or `latency`."""
    url: str
    """Of Redis or of PostgreSQL, whichever the queue uses."""
    jobs: int
    batch: int
    """Jobs enqueued together; 1 is one by one."""
    producers: int
    concurrency: int
    warm: int
    """Jobs that go through before the clock starts."""


class Tally:
    """What a queue says of its work: a handler started, jobs were acknowledged."""

    def __init__(self) -> None:
        self.started_at = 0.0
        """When the latest handler was called."""
        self.first_started_at = 0.0
        """When the first one was called since `expect()`."""
        self.total = 0
        """Jobs acknowledged so far."""
        self._expected = 0
        self._all = asyncio.Event()
        self._one = asyncio.Event()

    def start(self) -> None:
        """Say that a handler has been called."""
        self.started_at = time.perf_counter()
        if not self._one.is_set():
            self.first_started_at = self.started_at
            self._one.set()

    def acknowledge(self, count: int = 1) -> None:
        """Say that so many jobs are done and the queue has confirmed it."""
        self.total += count
        if self.total >= self._expected:
            self._all.set()

    def expect(self, more: int) -> None:
        """Begin to wait for so many more jobs; all before them have been acknowledged."""
        self._expected = self.total + more
        self._all.clear()
        self._one.clear()

    async def acknowledged(self) -> None:
        """Return when as many jobs as expected are acknowledged."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._all.wait()

    async def started(self) -> None:
        """Return when a handler has been called since `expect()`."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._one.wait()


class Queue(Protocol):
    """One queue, ready for jobs."""

    async def enqueue(self, payloads: Sequence[Payload]) -> None:
        """Return when the queue has confirmed all of these."""
        ...

    def worker(self) -> AbstractAsyncContextManager[None]:
        """Work on jobs while the block lasts."""
        ...


OpenQueue = Callable[[Run, Tally], AbstractAsyncContextManager[Queue]]


def payload(number: int) -> Payload:
    """Make a small job, the same for every queue."""
    return {
        "to": f"shopper{number}@example.com",
        "subject": f"Your cashback {number} is confirmed",
        "text": "Your cashback has been confirmed and will be paid with the next run.",
    }


def main(open_queue: OpenQueue) -> None:
    """Do what the command line asks for and print one line of JSON."""
    run = read_arguments()
    tell(run, uvloop.run(measure(open_queue, run)))


def tell(run: Run, figures: Figures) -> None:
    """Print what the bench reads."""
    print(json.dumps({"jobs": run.jobs, "figures": figures}), flush=True)


def read_arguments() -> Run:
    return Run(**vars(argument_parser(["mixed", "split", "latency"]).parse_args()))


def argument_parser(modes: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=modes, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--producers", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--warm", type=int, default=500)
    return parser


async def measure(open_queue: OpenQueue, run: Run) -> Figures:
    """Warm a queue up, then take the figures of one mode."""
    tally = Tally()
    async with open_queue(run, tally) as queue:
        async with _warmed_worker(queue, run, tally):
            if run.mode == "mixed":
                return await _mixed(queue, run, tally)
            if run.mode == "latency":
                return await _latency(queue, run, tally)
        return await _split(queue, run, tally)


@asynccontextmanager
async def _warmed_worker(queue: Queue, run: Run, tally: Tally) -> AsyncIterator[None]:
    async with queue.worker():
        tally.expect(run.warm)
        await enqueue_all(queue, run, run.warm)
        await tally.acknowledged()
        yield


async def _mixed(queue: Queue, run: Run, tally: Tally) -> Figures:
    """Producers and the worker at once, from the first enqueue to the last acknowledgement."""
    tally.expect(run.jobs)
    began = time.perf_counter()
    await enqueue_all(queue, run, run.jobs)
    enqueued = time.perf_counter()
    await tally.acknowledged()
    ended = time.perf_counter()
    return {
        "mixed_per_second": run.jobs / (ended - began),
        "mixed_seconds": ended - began,
        "mixed_enqueue_seconds": enqueued - began,
    }


async def _split(queue: Queue, run: Run, tally: Tally) -> Figures:
    """First only producers, then only the worker, its start included."""
    tally.expect(run.jobs)
    began = time.perf_counter()
    await enqueue_all(queue, run, run.jobs)
    enqueued = time.perf_counter()
    async with queue.worker():
        await tally.acknowledged()
        ended = time.perf_counter()
    return {
        "enqueue_per_second": run.jobs / (enqueued - began),
        "drain_per_second": run.jobs / (ended - enqueued),
    }


async def _latency(queue: Queue, run: Run, tally: Tally) -> Figures:
    """One job at a time: from the call that enqueues it to the call of its handler."""
    randomness = random.Random(1)
    latencies = []
    for number in range(run.jobs):
        await asyncio.sleep(randomness.uniform(*PAUSE_SECONDS))
        tally.expect(1)
        began = time.perf_counter()
        await queue.enqueue([payload(number)])
        await tally.started()
        latencies.append((tally.started_at - began) * 1000)
        await tally.acknowledged()
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(latencies)}


async def enqueue_all(queue: Queue, run: Run, jobs: int) -> None:
    """Let all producers take their next batch from one counter until `jobs` are enqueued."""
    firsts = iter(range(0, jobs, run.batch))

    async def produce() -> None:
        for first in firsts:
            numbers = range(first, min(first + run.batch, jobs))
            await queue.enqueue([payload(number) for number in numbers])

    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(run.producers):
            group.create_task(produce())
