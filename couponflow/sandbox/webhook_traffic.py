"""Providers without end: sends their signed events to the webhook intake, and sends them again
until it takes them.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

import anyio
import httpx2
import structlog

from couponflow.kernel.clock import Clock
from couponflow.sandbox.rhythm import arrival_times
from couponflow.sandbox.senders.events import SignedRequest
from couponflow.sandbox.senders.keys import SenderKeys
from couponflow.sandbox.senders.script import NOTHING_KNOWN, Chaos, Known, script
from couponflow.sandbox.senders.signing import sign_again
from couponflow.sandbox.sending import MAX_IN_FLIGHT, Complaints, Turns, open_client

MAX_ATTEMPTS = 12
MAX_RETRY_SECONDS = 30.0
# With what would be sent in so long already waiting for its time, no other script begins.
MAX_WAITING_SECONDS = 300.0
_LIVES_AT_ONCE = 12

_log = structlog.get_logger("couponflow.sandbox.senders")


class WebhookCounters:
    """What was sent and what came of it, since the traffic began."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        """By source and status."""
        self.failures: Counter[tuple[str, str]] = Counter()
        """Attempts without an answer, by source and the name of the error."""
        self.taken: Counter[str] = Counter()
        """Deliveries that were answered 2xx in the end, by source."""
        self.given_up: Counter[str] = Counter()
        """Deliveries that never were, by source."""

    @property
    def attempts(self) -> int:
        return self.answers.total() + self.failures.total()

    def describe(self) -> str:
        statuses: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            statuses[status] += count
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        taken = ", ".join(f"{count} {source}" for source, count in sorted(self.taken.items()))
        parts = [
            f"{self.attempts} sent; answers: {answers or 'none'}",
            f"taken: {taken or 'none'}",
        ]
        if self.failures:
            parts.append(f"{self.failures.total()} without an answer")
        if self.given_up:
            parts.append(f"{self.given_up.total()} given up")
        return "; ".join(parts)


def nothing_known() -> Known:
    """For providers that nobody was led to and who were given nothing to deliver."""
    return NOTHING_KNOWN


def endless_scripts(
    keys: SenderKeys,
    clock: Clock,
    randomness: random.Random,
    chaos: Chaos,
    known: Callable[[], Known] = nothing_known,
) -> Iterator[list[SignedRequest]]:
    """Yield, for ever, what all providers send in a while, made when it is asked for.

    For each `known` is called, and should say what is known by then and was not told of yet.
    """
    while True:
        yield script(randomness, keys, clock.now(), _LIVES_AT_ONCE, chaos, known())


async def send_webhooks(
    base_url: str,
    scripts: Iterator[Sequence[SignedRequest]],
    keys: SenderKeys,
    *,
    webhooks_per_second: float,
    randomness: random.Random,
    clock: Clock,
    stop: anyio.Event,
    counters: WebhookCounters | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    first_retry_seconds: float = 0.5,
) -> WebhookCounters:
    """Send until all is taken or given up, or `stop` is set; trouble is counted, never raised.

    The next script begins when nothing of those before it is due. Returns the counters, which can
    also be passed in and read on the way.
    """
    counters = counters if counters is not None else WebhookCounters()
    client = open_client(base_url, transport, {"user-agent": "couponflow-sandbox"})
    async with client, anyio.create_task_group() as tasks:
        sender = _Sender(client, keys, counters, clock, randomness, sleep, first_retry_seconds)

        async def send_all() -> None:
            await sender.send_all(scripts, webhooks_per_second)
            tasks.cancel_scope.cancel()

        tasks.start_soon(send_all)
        await stop.wait()
        tasks.cancel_scope.cancel()
    return counters


class _Sender:
    def __init__(
        self,
        client: httpx2.AsyncClient,
        keys: SenderKeys,
        counters: WebhookCounters,
        clock: Clock,
        randomness: random.Random,
        sleep: Callable[[float], Awaitable[None]],
        first_retry_seconds: float,
    ) -> None:
        self._client = client
        self._keys = keys
        self._counters = counters
        self._clock = clock
        self._randomness = randomness
        self._sleep = sleep
        self._first_retry_seconds = first_retry_seconds
        self._free = anyio.Semaphore(MAX_IN_FLIGHT)
        self._numbers = itertools.count()
        # When it is due, a number that settles ties, the request, the attempts before.
        self._waiting: list[tuple[float, int, SignedRequest, int]] = []
        self._in_flight = 0
        self._landed = anyio.Event()
        self._complaints = Complaints(clock)

    async def send_all(self, scripts: Iterator[Sequence[SignedRequest]], per_second: float) -> None:
        turns = Turns(self._clock, self._sleep)
        max_waiting = max(1.0, per_second * MAX_WAITING_SECONDS)
        async with anyio.create_task_group() as tasks:
            for turn in arrival_times(per_second, self._randomness):
                request, attempts = await self._next_due(scripts, max_waiting)
                if request is None:
                    return
                await turns.wait_for(turn)
                await self._free.acquire()
                self._in_flight += 1
                tasks.start_soon(self._send, request, attempts)

    async def _next_due(
        self, scripts: Iterator[Sequence[SignedRequest]], max_waiting: float
    ) -> tuple[SignedRequest | None, int]:
        """The next that is due, with the attempts before; none when nothing will ever be."""
        while True:
            now = self._clock.monotonic()
            if self._waiting and self._waiting[0][0] <= now:
                _, _, request, attempts = heapq.heappop(self._waiting)
                return request, attempts
            following = next(scripts, None) if len(self._waiting) < max_waiting else None
            if following is not None:
                for request in following:
                    self._wait(request, now + request.not_before_seconds, attempts=0)
            elif self._waiting:
                await self._sleep(self._waiting[0][0] - now)
            elif self._in_flight:
                await self._landed.wait()
            else:
                return None, 0

    def _wait(self, request: SignedRequest, due: float, attempts: int) -> None:
        heapq.heappush(self._waiting, (due, next(self._numbers), request, attempts))

    async def _send(self, request: SignedRequest, attempts: int) -> None:
        """Make one attempt; the caller has taken a place, which is given back here."""
        signed = sign_again(
            request, self._keys, self._clock.now(), retried=request.retried + attempts
        )
        try:
            is_taken = await self._attempt(signed)
            if is_taken:
                self._counters.taken[request.source] += 1
            elif attempts + 1 < MAX_ATTEMPTS:
                due = self._clock.monotonic() + self._retry_seconds(attempts)
                self._wait(request, due, attempts + 1)
            else:
                self._counters.given_up[request.source] += 1
        finally:
            self._in_flight -= 1
            self._free.release()
            self._landed.set()
            self._landed = anyio.Event()

    async def _attempt(self, request: SignedRequest) -> bool:
        try:
            response = await self._client.request(
                request.method, request.path, headers=dict(request.headers), content=request.body
            )
        except httpx2.HTTPError as error:
            self._counters.failures[request.source, type(error).__name__] += 1
            self._complain(request, f"{type(error).__name__}: {error}")
            return False
        self._counters.answers[request.source, response.status_code] += 1
        if not response.is_success:
            self._complain(request, f"it answered {response.status_code}")
        return response.is_success

    def _retry_seconds(self, attempts: int) -> float:
        seconds = min(self._first_retry_seconds * 2.0**attempts, MAX_RETRY_SECONDS)
        return seconds * self._randomness.uniform(0.5, 1.0)

    def _complain(self, request: SignedRequest, last: str) -> None:
        if self._complaints.may_complain():
            _log.warning("webhook_not_taken", source=request.source, last=last)
