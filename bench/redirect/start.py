"""From starting the program to its first redirect: on a new machine, and on the next day."""

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec

from bench.redirect.peers import couponflow_command, couponflow_environment, fresh_folder
from bench.redirect.processes import ProgramDied, first_redirect, free_port, program, read_log, tail
from bench.redirect.report import Goal, Sheet, seconds, spread

FIRST_GOAL_SECONDS = 15.0
AGAIN_GOAL_SECONDS = 3.0
LINK_SECONDS = 120.0
LINK = re.compile(r"/out/[a-z0-9-]+/[0-9a-f-]{36}/[0-9a-f-]{36}")


class Start(msgspec.Struct, frozen=True):
    """Seconds from exec to the first redirect, on one var folder."""

    first_seconds: float
    """On an empty folder: makes the database, migrates, loads the sample catalogue."""
    again_seconds: float
    """On the database the first start left behind; the embedded server is started too."""


async def measure_start(folder: Path, times: int, announce: Callable[[str], None]) -> list[Start]:
    """Start the demo twice on each of several new folders."""
    starts = []
    for number in range(times):
        var = fresh_folder(folder, "demo-var")
        log = folder / f"demo-{number}.log"
        first, path = await _start(var, log, None)
        again, _ = await _start(var, log, path)
        starts.append(Start(first, again))
        announce(f"{number + 1}/{times}  first run {first:.2f} s, next {again:.2f} s")
    return starts


async def _start(var: Path, log: Path, path: str | None) -> tuple[float, str]:
    port = free_port()
    environment = couponflow_environment(
        var,
        COUPONFLOW_REDIRECT_BIND=f"127.0.0.1:{port}",
        COUPONFLOW_OPS_BIND=f"127.0.0.1:{free_port()}",
        COUPONFLOW_SANDBOX_BIND=f"127.0.0.1:{free_port()}",
        # The links are read from the table the demo prints: no line may be folded.
        COLUMNS="400",
    )
    began = time.monotonic()
    async with program(couponflow_command("run", "--demo"), log, environment) as process:
        if path is None:
            path = await _printed_link(log, lambda: process.returncode is None)
        answered = await first_redirect(process, log, port, path)
    return answered - began, path


async def _printed_link(log: Path, alive: Callable[[], bool]) -> str:
    with anyio.move_on_after(LINK_SECONDS):
        while alive():
            found = LINK.search(read_log(log))
            if found is not None:
                return found.group()
            await anyio.sleep(0.01)
    raise ProgramDied(f"the demo printed no tracked link; its log:\n{tail(log)}")


def start_sheet(starts: list[Start]) -> Sheet:
    rows = [
        ["first run ever", spread([start.first_seconds for start in starts], seconds)],
        ["existing database", spread([start.again_seconds for start in starts], seconds)],
    ]
    return Sheet("Start to first redirect, with --demo", ["", "seconds"], rows)


def start_goals(starts: list[Start]) -> list[Goal]:
    first = statistics.median(start.first_seconds for start in starts)
    again = statistics.median(start.again_seconds for start in starts)
    return [
        Goal("first run ever", "under 15 s", f"{first:.2f} s", first < FIRST_GOAL_SECONDS),
        Goal("existing database", "under 3 s", f"{again:.2f} s", again < AGAIN_GOAL_SECONDS),
    ]
