"""How simulators send: at most so many at once, in time, and with few words about trouble."""

import math
from collections.abc import Awaitable, Callable, Mapping

import anyio
import httpx2

from couponflow.kernel.clock import Clock

MAX_IN_FLIGHT = 64
TIMEOUT_SECONDS = 5.0
"""As long as Razorpay waits; shoppers are no more patient."""
COMPLAINT_SECONDS = 10.0
# Behind by more than this, the lost time is let go instead of being made up for in a rush.
MAX_LAG_SECONDS = 1.0
OPEN_POLL_SECONDS = 0.1


def open_client(
    base_url: str,
    transport: httpx2.AsyncBaseTransport | None,
    headers: Mapping[str, str] | None = None,
) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=base_url,
        headers=headers,
        follow_redirects=False,
        timeout=httpx2.Timeout(TIMEOUT_SECONDS, connect=1.0),
        limits=httpx2.Limits(max_connections=MAX_IN_FLIGHT),
        # To set up TLS takes the event loop most of a second, and the demo speaks plain HTTP.
        verify=base_url.startswith("https:"),
        transport=transport,
    )


async def wait_until_open(
    base_url: str,
    stop: anyio.Event,
    transport: httpx2.AsyncBaseTransport | None = None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> None:
    """Return when somebody answers there, whatever the answer is, or when `stop` is set."""
    async with open_client(base_url, transport) as client, anyio.create_task_group() as tasks:

        async def ask() -> None:
            while not await _answers(client):
                await sleep(OPEN_POLL_SECONDS)
            tasks.cancel_scope.cancel()

        tasks.start_soon(ask)
        await stop.wait()
        tasks.cancel_scope.cancel()


async def _answers(client: httpx2.AsyncClient) -> bool:
    try:
        await client.get("/health")
    except httpx2.TransportError:
        return False
    return True


class Turns:
    """Moments to send at, in seconds from the first."""

    def __init__(self, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._began = clock.monotonic()

    async def wait_for(self, turn: float) -> None:
        late = self._clock.monotonic() - (self._began + turn)
        if late < 0:
            await self._sleep(-late)
        elif late > MAX_LAG_SECONDS:
            self._began += late


class Complaints:
    """Lets trouble be logged, but not once for everything that has it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._complained_at = -math.inf

    def may_complain(self) -> bool:
        """Whether the last complaint is long enough ago; if so, this is one."""
        now = self._clock.monotonic()
        if now - self._complained_at < COMPLAINT_SECONDS:
            return False
        self._complained_at = now
        return True
