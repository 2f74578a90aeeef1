"""How an operator's signals end the process."""

import os
import signal
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskStatus

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


async def stop_on_signals(
    stop: anyio.Event,
    *,
    exit_now: Callable[[int], None] = os._exit,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Set `stop` at the first SIGTERM or SIGINT, and end the process at the second.

    Start it with `await group.start(stop_on_signals, stop)`, so that no signal falls between, and
    cancel it when the work is over. The second signal ends the process without any cleaning up,
    with exit code 143 or 130: it is the way out when a stop hangs. Nothing that was answered for
    is lost by it, for the next start replays the journal.
    """
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for received in signals:
            if stop.is_set():
                log.error("exiting_now", signal=received.name)
                exit_now(128 + received)
            else:
                log.info("stopping", signal=received.name)
                stop.set()
