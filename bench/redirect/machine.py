"""What the figures were taken on: without it they mean nothing."""

import contextlib
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

from bench.redirect.databases import Server
from bench.redirect.processes import ProgramMissing, find_program
from couponflow import __version__
from couponflow.kernel.clock import SystemClock

VERSION_OPTIONS = {"bun": "--version", "nginx": "-v", "redis-server": "--version", "wrk": "-v"}


class Machine(msgspec.Struct, frozen=True):
    taken_at: datetime
    processor: str
    cores: int
    kernel: str
    load_average: float
    """Of the last minute, before the bench began; above about 0.3 the figures are noisy."""
    versions: dict[str, str]


async def describe_machine(server: Server | None) -> Machine:
    """Read what the bench runs on; call it before anything is loaded."""
    versions = {"couponflow": __version__, "python": platform.python_version()}
    if server is not None:
        versions["postgresql"] = await server.version()
    for name, option in VERSION_OPTIONS.items():
        with contextlib.suppress(ProgramMissing):
            versions[name] = await _version(find_program(name), option)
    return Machine(
        taken_at=datetime.fromtimestamp(SystemClock().now(), UTC),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        kernel=platform.release(),
        load_average=os.getloadavg()[0],
        versions=versions,
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


async def _version(program: str, option: str) -> str:
    # nginx writes its version to stderr, and wrk ends with 1 after telling its own.
    finished = await anyio.run_process([program, option], check=False)
    output = (finished.stdout + finished.stderr).decode(errors="replace")
    found = re.search(r"\d+(\.\d+)+", output)
    return found.group() if found else output.strip()
