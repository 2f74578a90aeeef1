"""Runs the handlers of a channel: takes its messages, makes attempts, judges how they ended."""

import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import assert_never

import anyio
import msgspec
import structlog

from couponflow.kernel.attempt import Attempt, AttemptOver
from couponflow.kernel.breaker import DeadLetterBreaker
from couponflow.kernel.clock import END_OF_TIME, Clock
from couponflow.kernel.commit_outcome import CommitUnknown
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.dead_letters import AttemptError, storable_text
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.error_text import describe
from couponflow.kernel.handlers import (
    DeliveryError,
    Discard,
    Done,
    Handler,
    HandlerContext,
    HandlerPolicy,
    MessageUnfit,
    NotKnownHere,
    Outcome,
    Retry,
    RetryPolicy,
    Snooze,
)
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.outbox_rows import PUT_OFF_SECONDS
from couponflow.kernel.settlement import Dead, Dropped, Finished, Later, Verdict
from couponflow.kernel.together import (
    TOGETHER_MAX,
    RunTogether,
    SomeWereTaken,
    attempt_together,
    may_go_together,
)
from couponflow.messages import Message

FORGIVEN_HANDOVERS_MAX = 100
"""An outage of PostgreSQL is not held against a message, unless it goes on for so many."""
ERROR_CHARACTERS_MAX = 2_000
WAIT_MAX_SECONDS = 366 * 86_400.0
"""The longest that another side, or a handler, may ask a message to wait."""
KEPT_SECONDS = 30.0
"""When a message that was kept from dying is tried again."""

_FINISHED = Finished("done")
COMMITTED = Finished("done", recorded=True)
_NOBODYS_FAULT = (SomeWereTaken, DatabaseAway, CommitUnknown)
_log = structlog.get_logger("couponflow.messages")


class _Runnable(msgspec.Struct, frozen=True):
    """A handler without its type, once the message is known to be of it."""

    name: str
    policy: HandlerPolicy
    run: Callable[[Message, HandlerContext], Awaitable[Outcome]]
    slots: anyio.Semaphore
    run_together: RunTogether | None


class HandlerRunner:
    """Makes attempts for one channel; an attempt never raises."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        database: Database,
        clock: Clock,
        randomness: random.Random,
        counts: ChannelCounts,
        breaker: DeadLetterBreaker,
        worker_name: str,
    ) -> None:
        self._handlers: Mapping[type[Message], _Runnable] = {
            handler.message_type: _Runnable(
                handler.name,
                handler.policy,
                handler.run,
                anyio.Semaphore(handler.policy.concurrency, fast_acquire=True),
                handler.run_together,
            )
            for handler in handlers
        }
        self._database = database
        self._clock = clock
        self._randomness = randomness
        self._counts = counts
        self._breaker = breaker
        self._worker_name = worker_name

    async def attempt(self, envelope: Envelope) -> Verdict:
        """Make one attempt and say what is to become of the message."""
        with structlog.contextvars.bound_contextvars(
            correlation_id=envelope.correlation_id, message_id=envelope.message_id
        ):
            return await self._attempt(envelope)

    def together_max(self, envelope: Envelope) -> int:
        """How many messages of its type may be attempted with this one, itself included."""
        runnable = self._handlers.get(type(envelope.message))
        can = runnable is not None and runnable.run_together and may_go_together(envelope)
        return TOGETHER_MAX if can else 1

    async def attempt_together(self, envelopes: Sequence[Envelope]) -> Set[str]:
        """Make one attempt at messages of one type; the ids of those that are done for good.

        What became of the others is not decided: they are to be attempted alone.
        """
        runnable = self._handlers[type(envelopes[0].message)]
        started = self._clock.monotonic()
        await _take(runnable.slots)
        try:
            with self._breaker.attempt():
                done = await self._run_together(runnable, envelopes)
        finally:
            runnable.slots.release()
        seconds = self._clock.monotonic() - started
        for _ in done:
            self._counts.seconds.observe(seconds)
            self._breaker.record(dead=False)
        return done

    async def _run_together(self, runnable: _Runnable, envelopes: Sequence[Envelope]) -> Set[str]:
        if runnable.run_together is None:
            return frozenset()
        try:
            with anyio.fail_after(runnable.policy.timeout_seconds):
                return await attempt_together(self._database, envelopes, runnable.run_together)
        except Exception as error:  # noqa: BLE001 - each is judged when it is attempted alone
            # A handler that always fails so is merely slow: the log is where that is seen.
            log = _log.info if isinstance(error, _NOBODYS_FAULT) else _log.warning
            log(
                "messages will be attempted alone",
                handler=runnable.name,
                messages=len(envelopes),
                error=describe(error),
            )
            return frozenset()

    async def _attempt(self, envelope: Envelope) -> Verdict:
        runnable = self._handlers.get(type(envelope.message))
        if runnable is None:
            text = f"no handler for {type(envelope.message).__name__} in this version"
            return self._left_to_others(envelope, text)
        retry = runnable.policy.retry
        if envelope.attempt > retry.max_attempts:
            return self._dead(
                envelope,
                f"attempt {envelope.attempt - 1} of {retry.max_attempts} ended with its worker",
                attempts=envelope.attempt - 1,
            )
        crash_point("handler.begun")
        started = self._clock.monotonic()
        await _take(runnable.slots)
        try:
            with self._breaker.attempt():
                verdict = await self._run(runnable, envelope)
        finally:
            runnable.slots.release()
        self._counts.seconds.observe(self._clock.monotonic() - started)
        crash_point("handler.returned")
        return verdict

    async def _run(self, runnable: _Runnable, envelope: Envelope) -> Verdict:
        attempt = Attempt(envelope, self._database)
        timeout_seconds = runnable.policy.timeout_seconds
        outcome: Outcome | None = None
        failure: Exception | None = None
        with anyio.move_on_after(timeout_seconds) as scope:
            try:
                outcome = await runnable.run(envelope.message, attempt)
            except Exception as error:  # noqa: BLE001 - judged, recorded, and tried again
                failure = error
        if attempt.committed:
            if failure is not None:
                _log.error("handler failed after its commit", exc_info=failure)
            self._breaker.record(dead=False)
            return COMMITTED
        if attempt.over or isinstance(failure, AttemptOver):
            return Dropped()
        if failure is not None:
            return self._judge_failure(envelope, runnable, failure)
        if scope.cancelled_caught:
            return self._failed(envelope, runnable, f"timed out after {timeout_seconds:g} s", None)
        if not isinstance(outcome, Outcome):
            text = f"the handler returned {type(outcome).__name__}, which is no outcome"
            return self._failed(envelope, runnable, text, None)
        return self._judge_outcome(envelope, runnable, outcome)

    def _judge_outcome(self, envelope: Envelope, runnable: _Runnable, outcome: Outcome) -> Verdict:
        match outcome:
            case Done():
                self._breaker.record(dead=False)
                return _FINISHED
            case Discard():
                self._breaker.record(dead=False)
                _log.info("message discarded", handler=runnable.name, reason=outcome.reason)
                return Finished("discarded")
            case Snooze():
                return Later(available_at=_bounded(outcome.until, END_OF_TIME - 1), forgiven=True)
            case Retry():
                return self._failed(envelope, runnable, outcome.reason, outcome.after_seconds)
            case _:
                assert_never(outcome)

    def _judge_failure(
        self, envelope: Envelope, runnable: _Runnable, failure: Exception
    ) -> Verdict:
        text = describe(failure)
        if isinstance(failure, NotKnownHere):
            return self._left_to_others(envelope, text)
        # Giving it back changes nothing if the effect was committed after all: the row is gone.
        away = isinstance(failure, (DatabaseAway, CommitUnknown))
        if away and envelope.handover < FORGIVEN_HANDOVERS_MAX:
            return Later(
                after_seconds=self._backoff(runnable.policy.retry, 1),
                error=self._error(envelope, text),
                forgiven=True,
            )
        after_seconds = None
        unfit = isinstance(failure, MessageUnfit)
        if isinstance(failure, DeliveryError):
            if failure.permanent:
                return self._dead(envelope, text, self._error(envelope, text), unfit=unfit)
            after_seconds = failure.retry_after_seconds
        else:
            _log.warning("handler failed", handler=runnable.name, exc_info=failure)
        return self._failed(envelope, runnable, text, after_seconds, unfit=unfit)

    def _left_to_others(self, envelope: Envelope, text: str) -> Verdict:
        """Put off for a daemon that knows more than this one."""
        if envelope.handover >= FORGIVEN_HANDOVERS_MAX:
            return self._dead(envelope, text)
        error = self._error(envelope, text)
        return Later(after_seconds=PUT_OFF_SECONDS, error=error, forgiven=True)

    def _failed(
        self,
        envelope: Envelope,
        runnable: _Runnable,
        text: str,
        after_seconds: float | None,
        *,
        unfit: bool = False,
    ) -> Verdict:
        """One more attempt, if there is one left."""
        retry = runnable.policy.retry
        error = self._error(envelope, text)
        if envelope.attempt >= retry.max_attempts:
            return self._dead(envelope, text, error, unfit=unfit)
        wait = self._backoff(retry, envelope.attempt)
        if after_seconds is not None:
            # What the other side asked for, and the jitter on top, lest all come at that instant.
            after_seconds = _bounded(after_seconds, WAIT_MAX_SECONDS)
            wait = after_seconds + wait if after_seconds > 0 else 0.0
        _log.info(
            "message will be tried again",
            handler=runnable.name,
            attempt=envelope.attempt,
            after_seconds=round(wait, 3),
            error=text,
        )
        return Later(after_seconds=wait, error=error)

    def _dead(
        self,
        envelope: Envelope,
        reason: str,
        error: AttemptError | None = None,
        attempts: int | None = None,
        *,
        unfit: bool = False,
    ) -> Verdict:
        if not (unfit or self._breaker.about_to_bury()):
            # The last attempt is given back: the fault is probably not this message's.
            return Later(after_seconds=KEPT_SECONDS, error=error, forgiven=True)
        _log.error("message is dead", channel=envelope.message.channel, reason=reason)
        return Dead(reason=reason[:ERROR_CHARACTERS_MAX], error=error, attempts=attempts)

    def _backoff(self, retry: RetryPolicy, attempt: int) -> float:
        """Exponential with full jitter: anything from nothing to the whole wait."""
        whole = min(retry.max_seconds, retry.first_seconds * 2 ** min(attempt - 1, 30))
        return self._randomness.uniform(0.0, whole)

    def _error(self, envelope: Envelope, text: str) -> AttemptError:
        text = storable_text(text)[:ERROR_CHARACTERS_MAX]
        return AttemptError(envelope.attempt, self._clock.now(), self._worker_name, text)


def _bounded(seconds: float, most: float) -> float:
    """Whatever was asked for, as something that PostgreSQL can wait for."""
    return 0.0 if math.isnan(seconds) else min(max(0.0, seconds), most)


async def _take(slots: anyio.Semaphore) -> None:
    """Take a slot; without a look at the event loop where one is free."""
    try:
        slots.acquire_nowait()
    except anyio.WouldBlock:
        await slots.acquire()
