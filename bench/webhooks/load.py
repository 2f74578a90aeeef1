"""The load: wrk with one thread and 64 connections, sending signed requests from a file."""

from pathlib import Path

import anyio
import msgspec

from bench.redirect.load import CONNECTIONS, MARK, Load, LoadFailed
from bench.webhooks.signed_requests import Requests

SCRIPT = Path(__file__).with_name("load.lua")


async def run_load(port: int, requests: Requests, seconds: int) -> Load:
    """Send the file's requests as fast as they are answered, and count the answers."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "--timeout=10s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}/", "--", str(requests.path)]
    with anyio.fail_after(seconds + 60):
        finished = await anyio.run_process(command, check=False)
    output = (finished.stdout + finished.stderr).decode(errors="replace")
    if finished.returncode != 0 or MARK not in output:
        raise LoadFailed(f"wrk ended with {finished.returncode}:\n{output}")
    load = msgspec.json.decode(output.split(MARK, 1)[1].splitlines()[0], type=Load)
    if load.requests == 0 or load.bad_statuses or load.socket_errors or load.timeouts:
        raise LoadFailed(f"not every event was answered 200:\n{output}")
    return load
