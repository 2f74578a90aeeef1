"""Shoppers without end: sends made-up requests to a redirector at a given rate."""

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

import anyio
import httpx2
import structlog

from couponflow.kernel.clock import Clock
from couponflow.sandbox.rhythm import arrival_times
from couponflow.sandbox.sending import MAX_IN_FLIGHT, Complaints, Turns, open_client
from couponflow.sandbox.shopper_requests import ShopperLink, ShopperRequest, shopper_requests

__all__ = ["ShopperCounters", "ShopperLink", "send_shoppers"]

# A page costs more than a redirect: a few a second are enough for the networks to see clicks.
LANDING_SECONDS = 0.2

_log = structlog.get_logger("couponflow.sandbox.shoppers")


class ShopperCounters:
    """What was sent and what came of it, since the stream began."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        """By kind of request."""
        self.answers: Counter[int] = Counter()
        """By status."""
        self.failures: Counter[str] = Counter()
        """Requests without an answer, by the name of the error."""
        self.landed = 0
        """Those who went on to a network and arrived."""

    @property
    def troubles(self) -> int:
        """Answers no shopper should get, and requests that got none."""
        troubled = (count for status, count in self.answers.items() if is_trouble(status))
        return sum(troubled) + self.failures.total()

    def describe(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.sent.items()))
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(self.answers.items()))
        failures = ", ".join(f"{count} {name}" for name, count in sorted(self.failures.items()))
        parts = [f"{self.sent.total()} sent ({kinds or 'none'})", f"answers: {answers or 'none'}"]
        if self.landed:
            parts.append(f"{self.landed} went on to a network")
        return "; ".join([*parts, f"failed: {failures}"] if failures else parts)


def is_trouble(status: int) -> bool:
    return status == httpx2.codes.TOO_MANY_REQUESTS or status >= 500


async def send_shoppers(
    base_url: str,
    links: Sequence[ShopperLink],
    users: Sequence[str],
    *,
    shoppers_per_second: float,
    randomness: random.Random,
    clock: Clock,
    stop: anyio.Event,
    networks_url: str = "",
    counters: ShopperCounters | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> ShopperCounters:
    """Send requests until `stop` is set; trouble with the target is counted and never raised.

    The first link is the most popular. Whom a redirect leads to `networks_url` goes on to there, a
    few of them a second, and to nowhere else. Returns the counters, which can also be passed in and
    read on the way.
    """
    counters = counters if counters is not None else ShopperCounters()
    client = open_client(base_url, transport)
    async with client, anyio.create_task_group() as tasks:
        sender = _Sender(client, counters, clock, sleep, networks_url)
        requests = shopper_requests(links, users, randomness)
        tasks.start_soon(sender.send_all, requests, arrival_times(shoppers_per_second, randomness))
        await stop.wait()
        tasks.cancel_scope.cancel()
    return counters


class _Sender:
    def __init__(
        self,
        client: httpx2.AsyncClient,
        counters: ShopperCounters,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
        networks_url: str,
    ) -> None:
        self._client = client
        self._counters = counters
        self._clock = clock
        self._sleep = sleep
        self._free = anyio.Semaphore(MAX_IN_FLIGHT)
        self._complaints = Complaints(clock)
        self._complained_of = 0
        self._networks = f"{networks_url}/" if networks_url else ""
        self._landed_at = -math.inf

    async def send_all(self, requests: Iterator[ShopperRequest], times: Iterator[float]) -> None:
        turns = Turns(self._clock, self._sleep)
        async with anyio.create_task_group() as tasks:
            for request, due in zip(requests, times, strict=True):
                # A double click does not wait for its turn but for the finger.
                if request.repeat_seconds > 0:
                    tasks.start_soon(self._repeat, request)
                    continue
                await turns.wait_for(due)
                await self._free.acquire()
                tasks.start_soon(self._send, request)

    async def _repeat(self, request: ShopperRequest) -> None:
        await self._sleep(request.repeat_seconds)
        await self._free.acquire()
        await self._send(request)

    async def _send(self, request: ShopperRequest) -> None:
        """Send one request; the caller has taken a place, which is given back here."""
        self._counters.sent[request.kind] += 1
        try:
            response = await self._client.request(
                request.method, request.path, headers=request.headers
            )
            self._counters.answers[response.status_code] += 1
            if is_trouble(response.status_code):
                self._complain(f"it answered {response.status_code}")
            if request.kind in ("human", "double_click"):
                await self._go_on(response.headers.get("location", ""), request)
        except httpx2.TransportError as error:
            self._counters.failures[type(error).__name__] += 1
            self._complain(f"{type(error).__name__}: {error}")
        finally:
            self._free.release()

    async def _go_on(self, location: str, request: ShopperRequest) -> None:
        now = self._clock.monotonic()
        if not self._networks or not location.startswith(self._networks):
            return
        if now - self._landed_at < LANDING_SECONDS:
            return
        self._landed_at = now
        response = await self._client.get(location, headers=request.headers)
        self._counters.landed += response.is_success

    def _complain(self, last: str) -> None:
        if self._complaints.may_complain():
            troubles = self._counters.troubles
            _log.warning("shoppers_not_served", shoppers=troubles - self._complained_of, last=last)
            self._complained_of = troubles
