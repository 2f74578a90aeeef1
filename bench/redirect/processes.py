"""The programs the bench runs beside itself, and what it can learn of them from outside."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import anyio
from anyio.abc import Process

STOP_SECONDS = 30.0
READY_SECONDS = 60.0

PACKAGES = {
    "wrk": "apt-get install wrk (or https://github.com/wg/wrk)",
    "nginx": "apt-get install nginx-light (or nginx)",
    "redis-server": "apt-get install redis-server",
    "bun": "npm ci (in bench/redirect)",
}


class ProgramMissing(Exception):
    """A program the bench needs is not installed; the message says how to get it."""


class ProgramDied(Exception):
    """A program ended by itself or was never ready; the end of its log is in the message."""


def find_program(name: str) -> str:
    """Return where a program is, or say how to install it."""
    if name == "bun":
        bun = Path(__file__).parent / "node_modules" / ".bin" / "bun"
        found = str(bun) if bun.exists() else None
    else:
        # Debian keeps nginx where only root's PATH looks.
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ProgramMissing(f"{name} is not installed. Install it with: {PACKAGES[name]}")
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_log(log: Path) -> str:
    return log.read_text(errors="replace")


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(read_log(log).splitlines()[-lines:])


@contextlib.asynccontextmanager
async def program(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run a program until the block ends, then stop it with SIGTERM; its output goes to the log."""
    with log.open("ab") as output:
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    with anyio.move_on_after(STOP_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


async def first_redirect(process: Process, log: Path, port: int, path: str) -> float:
    """Ask for a path until it is a redirect with a target; return when, on `time.monotonic()`."""

    def is_redirect(answer: str) -> bool:
        return answer.startswith("http/1.1 302 ") and "\r\nlocation: http" in answer

    return await _first_answer(process, log, port, path, is_redirect)


async def ready(process: Process, log: Path, port: int) -> None:
    """Wait until a couponflow daemon says that it can do all its work."""
    await _first_answer(process, log, port, "/ready", lambda it: it.startswith("http/1.1 200 "))


async def _first_answer(
    process: Process, log: Path, port: int, path: str, is_wanted: Callable[[str], bool]
) -> float:
    answer = "none"
    with anyio.move_on_after(READY_SECONDS):
        while process.returncode is None:
            answer = await _ask(port, path)
            if is_wanted(answer.lower()):
                return time.monotonic()
            await anyio.sleep(0.005)
    raise ProgramDied(
        f"{path} on port {port} was not answered as it should within {READY_SECONDS:.0f} s; "
        f"last answer: {answer.partition(chr(13))[0]}; log:\n{tail(log)}"
    )


async def _ask(port: int, path: str) -> str:
    request = f"GET {path} HTTP/1.1\r\nHost: go.coupons.example\r\nConnection: close\r\n\r\n"
    received = b""
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(request.encode())
            with anyio.fail_after(10):
                async for chunk in stream:
                    received += chunk
    except (OSError, anyio.BrokenResourceError) as problem:
        return received.decode(errors="replace") or str(problem)
    return received.decode(errors="replace")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, without its children."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProgramDied(f"process {pid} has no memory any more")
