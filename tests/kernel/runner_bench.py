"""A `HandlerRunner` with one handler, and handlers that always end in the same way."""

import random
from collections.abc import Awaitable, Callable

from couponflow.config import DatabaseSettings
from couponflow.kernel.breaker import DeadLetterBreaker
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.handler_runner import HandlerRunner
from couponflow.kernel.handlers import (
    Handler,
    HandlerContext,
    HandlerPolicy,
    Outcome,
    RetryPolicy,
)
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.settlement import Dead, Later, Verdict
from couponflow.messages import EmailRequested

Run = Callable[[EmailRequested, HandlerContext], Awaitable[Outcome]]
RETRY = RetryPolicy(max_attempts=3, first_seconds=1.0, max_seconds=300.0)


class Bench:
    """A runner with one handler, without PostgreSQL unless it is given."""

    def __init__(
        self, run: Run, database: Database | None = None, policy: HandlerPolicy | None = None
    ) -> None:
        self.clock = ManualClock()
        self.counts = ChannelCounts()
        self.breaker = DeadLetterBreaker(self.clock)
        self.runner = HandlerRunner(
            [Handler("test", EmailRequested, run, policy or HandlerPolicy(retry=RETRY))],
            database=database or Database("postgresql://nowhere", DatabaseSettings()),
            clock=self.clock,
            randomness=random.Random(1),
            counts=self.counts,
            breaker=self.breaker,
            worker_name="host:1",
        )


def returning(outcome: Outcome) -> Run:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        return outcome

    return run


def raising(error: Exception) -> Run:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        raise error

    return run


def later(verdict: Verdict) -> Later:
    assert isinstance(verdict, Later)
    return verdict


def error_of(verdict: Verdict) -> str:
    assert isinstance(verdict, Later | Dead)
    assert verdict.error is not None
    return verdict.error.error
