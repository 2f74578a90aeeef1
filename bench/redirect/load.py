"""The load: wrk with one thread and 64 connections, and what it saw."""

from pathlib import Path

import anyio
import msgspec

from bench.redirect.catalogue import Catalogue

CONNECTIONS = 64
SCRIPT = Path(__file__).with_name("load.lua")
MARK = "summary "


class LoadFailed(Exception):
    """wrk did not run to its end, or saw answers that are not redirects; its output is inside.

    Look at the peer's log in the bench's folder (`--keep`).
    """


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What wrk reported of one run."""

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    bad_statuses: int
    """Answers above 399. A constant load of known offers must have none."""
    socket_errors: int
    timeouts: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


async def run_load(port: int, catalogue: Catalogue, seconds: float, seed: int) -> Load:
    """Send random clicks to the port as fast as it answers, and count the answers."""
    whole_seconds = max(1, round(seconds))
    arguments = [
        catalogue.offers.path,
        catalogue.offers.width,
        catalogue.users.path,
        catalogue.users.width,
        seed,
    ]
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{whole_seconds}s",
        "--latency",
        "--timeout=10s",
    ]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}/", "--", *map(str, arguments)]
    with anyio.fail_after(whole_seconds + 60):
        finished = await anyio.run_process(command, check=False)
    output = (finished.stdout + finished.stderr).decode(errors="replace")
    if finished.returncode != 0 or MARK not in output:
        raise LoadFailed(f"wrk ended with {finished.returncode}:\n{output}")
    load = msgspec.json.decode(output.split(MARK, 1)[1].splitlines()[0], type=Load)
    if load.requests == 0 or load.bad_statuses or load.socket_errors or load.timeouts:
        raise LoadFailed(f"not every answer was a redirect:\n{output}")
    return load
