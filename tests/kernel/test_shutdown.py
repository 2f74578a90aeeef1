"""Signals: the first asks for a stop, the second ends the process."""

import os
import signal
import subprocess
import sys
from functools import partial

import anyio
import pytest

from couponflow.kernel.shutdown import stop_on_signals

PATIENCE_SECONDS = 20.0

DEAF_PROGRAM = """
import anyio
from couponflow.kernel.shutdown import stop_on_signals

async def main():
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        await group.start(stop_on_signals, stop)
        print("running", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend_options={"use_uvloop": True})
"""

both = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)


@both
async def test_the_first_signal_asks_for_a_stop_and_the_second_ends_the_process(
    number: signal.Signals, code: int
) -> None:
    stop = anyio.Event()
    second = anyio.Event()
    exits: list[int] = []

    def exit_now(code: int) -> None:
        exits.append(code)
        second.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            await group.start(partial(stop_on_signals, stop, exit_now=exit_now))
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            await stop.wait()
            assert exits == []
            os.kill(os.getpid(), number)
            await second.wait()
            group.cancel_scope.cancel()
    assert exits == [code]


async def test_a_signal_ends_a_process_that_was_asked_to_stop_otherwise() -> None:
    stop = anyio.Event()
    stop.set()
    exited = anyio.Event()
    exits: list[int] = []

    def exit_now(code: int) -> None:
        exits.append(code)
        exited.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            await group.start(partial(stop_on_signals, stop, exit_now=exit_now))
            os.kill(os.getpid(), signal.SIGTERM)
            await exited.wait()
            group.cancel_scope.cancel()
    assert exits == [143]


@both
def test_a_process_that_does_not_stop_exits_at_its_second_signal(
    number: signal.Signals, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEAF_PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = (line.strip() for line in process.stdout if line.strip().isalpha())
            assert next(lines) == "running"
            process.send_signal(number)
            assert next(lines) == "stopping"
            process.send_signal(number)
            assert process.wait(PATIENCE_SECONDS) == code
        finally:
            process.kill()
