import math
import random
from typing import cast

import anyio
import psycopg
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.processors import format_exc_info

from couponflow.kernel.attempt import AttemptOver, TransactionUsedUp
from couponflow.kernel.clock import END_OF_TIME
from couponflow.kernel.commit_outcome import CommitUnknown
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handler_runner import (
    ERROR_CHARACTERS_MAX,
    FORGIVEN_HANDOVERS_MAX,
    KEPT_SECONDS,
    WAIT_MAX_SECONDS,
)
from couponflow.kernel.handlers import (
    DONE,
    DeliveryError,
    Discard,
    HandlerContext,
    HandlerPolicy,
    MessageUnfit,
    NotKnownHere,
    Outcome,
    Retry,
    RetryPolicy,
    Snooze,
)
from couponflow.kernel.outbox_rows import PUT_OFF_SECONDS, PutBack, Token
from couponflow.kernel.settlement import Dead, Dropped, Finished, Later, Verdict
from couponflow.kernel.telemetry import scrub
from couponflow.messages import EmailRequested, Message
from tests.kernel.outboxes import (
    WORKER,
    claim,
    email,
    envelope,
    message_id,
    places,
    publish_emails,
    put_back,
    register,
    select,
    sms,
)
from tests.kernel.runner_bench import RETRY, Bench, Run, error_of, later, raising, returning
from tests.samples import CLICKED_AT, PATIENCE_SECONDS


async def test_done_and_discarded_messages_are_finished() -> None:
    assert await Bench(returning(DONE)).runner.attempt(envelope()) == Finished("done")
    discard = Bench(returning(Discard("too late")))
    assert await discard.runner.attempt(envelope()) == Finished("discarded")


async def test_a_snooze_is_no_attempt() -> None:
    bench = Bench(returning(Snooze(CLICKED_AT + 60)))
    assert await bench.runner.attempt(envelope(attempt=3)) == Later(
        available_at=CLICKED_AT + 60, forgiven=True
    )


@pytest.mark.parametrize(
    ("until_seconds", "available_at"),
    [(math.inf, END_OF_TIME - 1), (1e300, END_OF_TIME - 1), (-1e9, 0.0), (math.nan, 0.0)],
)
async def test_a_snooze_without_end_is_one_that_postgres_can_hold(
    until_seconds: float, available_at: float
) -> None:
    verdict = await Bench(returning(Snooze(until_seconds))).runner.attempt(envelope())
    assert later(verdict).available_at == available_at


async def test_a_retry_waits_for_what_was_asked_and_the_jitter() -> None:
    verdict = later(await Bench(returning(Retry(60, "busy"))).runner.attempt(envelope()))
    assert 60 <= verdict.after_seconds <= 61
    assert not verdict.forgiven
    assert error_of(verdict) == "busy"
    assert verdict.error is not None
    assert (verdict.error.attempt, verdict.error.worker) == (1, "host:1")
    assert verdict.error.at == CLICKED_AT


@pytest.mark.parametrize("seconds", [0.0, -5.0, math.nan])
async def test_a_retry_at_once_is_at_once(seconds: float) -> None:
    verdict = await Bench(returning(Retry(seconds))).runner.attempt(envelope())
    assert later(verdict).after_seconds == 0.0


async def test_a_retry_waits_no_longer_than_a_year() -> None:
    verdict = later(await Bench(returning(Retry(math.inf))).runner.attempt(envelope()))
    assert WAIT_MAX_SECONDS <= verdict.after_seconds <= WAIT_MAX_SECONDS + 1


@given(st.integers(0, 10_000), st.integers(1, 200))
def test_a_failed_message_waits_with_full_jitter(seed: int, attempt: int) -> None:
    bench = Bench(returning(DONE))
    bench.runner._randomness = random.Random(seed)
    policy = RetryPolicy(max_attempts=1000, first_seconds=2.0, max_seconds=100.0)
    whole = min(100.0, 2.0 * 2 ** (attempt - 1))
    waits = [bench.runner._backoff(policy, attempt) for _ in range(50)]
    assert all(0 <= wait <= whole for wait in waits)
    # Anything from nothing to the whole: not only near its end.
    assert min(waits) < whole / 2 < max(waits)


async def test_an_exception_is_a_failed_attempt() -> None:
    verdict = later(await Bench(raising(KeyError("offer"))).runner.attempt(envelope(attempt=2)))
    assert 0 <= verdict.after_seconds <= 2
    assert error_of(verdict) == "KeyError: 'offer'"
    assert (verdict.forgiven, verdict.available_at) == (False, None)


async def test_the_last_attempt_that_fails_is_a_death() -> None:
    verdict = await Bench(raising(ValueError("no"))).runner.attempt(envelope(attempt=3))
    assert isinstance(verdict, Dead)
    assert verdict.reason == error_of(verdict) == "ValueError: no"
    assert verdict.attempts is None


async def test_an_attempt_after_the_last_is_not_made() -> None:
    begun: list[int] = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        begun.append(context.attempt)
        return DONE

    bench = Bench(run)
    assert await bench.runner.attempt(envelope(attempt=4)) == Dead(
        reason="attempt 3 of 3 ended with its worker", attempts=3
    )
    assert begun == []
    assert await bench.runner.attempt(envelope(attempt=3)) == Finished("done")


async def test_a_text_that_postgres_cannot_hold_is_made_one_that_it_can() -> None:
    verdict = await Bench(raising(ValueError("\0 \ud800" + "x" * 9999))).runner.attempt(envelope())
    text = error_of(verdict)
    assert text.startswith("ValueError: \ufffd ?xxx")
    assert len(text) == ERROR_CHARACTERS_MAX
    text.encode()


async def test_a_permanent_delivery_error_is_a_death_at_once() -> None:
    error = DeliveryError("no such mailbox", permanent=True)
    verdict = await Bench(raising(error)).runner.attempt(envelope())
    assert isinstance(verdict, Dead)
    assert verdict.reason == "DeliveryError: no such mailbox"


async def test_what_the_other_side_asked_for_is_waited_for() -> None:
    error = DeliveryError("429", permanent=False, retry_after_seconds=120)
    verdict = later(await Bench(raising(error)).runner.attempt(envelope(attempt=2)))
    assert 120 <= verdict.after_seconds <= 122
    assert error_of(verdict) == "DeliveryError: 429"


async def sleeps(message: EmailRequested, context: HandlerContext) -> Outcome:
    await anyio.sleep_forever()
    return DONE


async def test_a_handler_that_takes_too_long_is_cancelled() -> None:
    policy = HandlerPolicy(timeout_seconds=0.01, retry=RETRY)
    bench = Bench(sleeps, policy=policy)
    assert error_of(await bench.runner.attempt(envelope())) == "timed out after 0.01 s"
    assert isinstance(await bench.runner.attempt(envelope(attempt=3)), Dead)


@pytest.mark.parametrize("timeout_seconds", [0.0, 120.0, math.inf, math.nan])
def test_a_timeout_is_shorter_than_a_transaction_may_be_idle(timeout_seconds: float) -> None:
    with pytest.raises(ValueError, match="PostgreSQL ends its transaction"):
        HandlerPolicy(timeout_seconds=timeout_seconds)


async def test_a_timeout_of_the_handlers_own_is_an_exception() -> None:
    verdict = await Bench(raising(TimeoutError("theirs"))).runner.attempt(envelope())
    assert error_of(verdict) == "TimeoutError: theirs"


async def test_what_is_no_outcome_is_a_failed_attempt() -> None:
    verdict = await Bench(cast(Run, returning_nothing)).runner.attempt(envelope())
    assert error_of(verdict) == "the handler returned NoneType, which is no outcome"


async def returning_nothing(message: EmailRequested, context: HandlerContext) -> None:
    """What a handler without types does when it forgets its outcome."""


@pytest.mark.parametrize("message", [sms(), None])
async def test_what_nobody_here_can_handle_is_left_to_another_daemon_for_a_while(
    message: Message | None,
) -> None:
    bench = Bench(raising(NotKnownHere("no such shop")))
    verdict = later(await bench.runner.attempt(envelope(message, attempt=3)))
    assert (verdict.forgiven, verdict.after_seconds) == (True, PUT_OFF_SECONDS)
    assert error_of(verdict).startswith("no handler for Sms" if message else "NotKnownHere: no")
    endless = envelope(message, handover=FORGIVEN_HANDOVERS_MAX)
    assert isinstance(await bench.runner.attempt(endless), Dead)


@pytest.mark.parametrize("error", [DatabaseAway("away"), CommitUnknown("unknown")])
async def test_an_outage_of_postgres_is_forgiven(error: Exception) -> None:
    bench = Bench(raising(error))
    verdict = later(await bench.runner.attempt(envelope(attempt=3, handover=5)))
    assert verdict.forgiven
    assert verdict.after_seconds <= 1
    assert error_of(verdict) == f"{type(error).__name__}: {error}"
    endless = envelope(attempt=3, handover=FORGIVEN_HANDOVERS_MAX)
    assert isinstance(await bench.runner.attempt(endless), Dead)


async def test_the_breaker_keeps_messages_from_dying() -> None:
    bench = Bench(raising(DeliveryError("wrong key", permanent=False)))
    verdicts = [await bench.runner.attempt(envelope(attempt=3)) for _ in range(25)]
    assert [type(verdict) for verdict in verdicts] == [Dead] * 19 + [Later] * 6
    kept = later(verdicts[-1])
    assert (kept.after_seconds, kept.forgiven) == (KEPT_SECONDS, True)
    assert error_of(kept) == "DeliveryError: wrong key"
    assert bench.breaker.state == "open"


@pytest.mark.parametrize("permanent", [False, True])
async def test_messages_that_are_unfit_die_of_it_and_leave_the_breaker_alone(
    permanent: bool,
) -> None:
    bench = Bench(raising(MessageUnfit("order 7 is not known", permanent=permanent)))
    verdicts = [await bench.runner.attempt(envelope(attempt=3)) for _ in range(50)]
    assert [type(verdict) for verdict in verdicts] == [Dead] * 50
    assert bench.breaker.state == "closed"


async def test_attempts_are_timed_and_their_log_lines_say_whose_they_are() -> None:
    seen: list[dict[str, str]] = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        seen.append(dict(structlog.contextvars.get_contextvars()))
        bench.clock.advance(2)
        return DONE

    bench = Bench(run)
    await bench.runner.attempt(envelope(number=1))
    await bench.runner.attempt(envelope(number=2))
    # Whatever this task does next belongs to another story.
    assert structlog.contextvars.get_contextvars() == {}
    assert seen == [{"correlation_id": f"story-{n}", "message_id": message_id(n)} for n in (1, 2)]
    samples = {s.name: s.value for s in bench.counts.seconds.metric("x", "x").samples}
    assert samples["x_sum"] == 4


async def test_no_more_than_its_concurrency_are_run_at_once() -> None:
    running, most, gate = 0, 0, anyio.Event()

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return DONE

    bench = Bench(run, policy=HandlerPolicy(concurrency=2))
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(bench.runner.attempt, envelope(number=number))
        await anyio.wait_all_tasks_blocked()
        assert running == 2
        gate.set()
    assert most == 2


# With PostgreSQL: what a handler's own transaction makes of its attempt.


async def note(context: HandlerContext) -> None:
    async with context.transaction() as connection:
        await connection.execute("insert into effects values (%s)", [context.message_id])


@pytest.fixture
async def effects(database: Database) -> Database:
    """A database in which a handler can have effects, and a message that is begun."""
    async with database.connection() as connection:
        await connection.execute("create table effects (id uuid not null)")
    await register(database, WORKER)
    return database


async def begun_envelope(database: Database) -> Envelope:
    await publish_emails(database, 1)
    [row] = await claim(database)
    return envelope(attempt=row.attempt, handover=row.handover, begun=True)


async def test_a_transaction_makes_the_effect_and_the_record_at_once(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        assert (context.message_id, context.correlation_id) == (message_id(1), "story-1")
        assert (context.attempt, context.published_at) == (1, CLICKED_AT)
        assert message == email(1)
        await note(context)
        return DONE

    begun = await begun_envelope(effects)
    assert await Bench(run, effects).runner.attempt(begun) == Finished("done", recorded=True)
    assert await places(effects) == []
    assert await select(effects, "select id::text from effects") == [(message_id(1),)]
    # It comes once more.
    assert await Bench(run, effects).runner.attempt(begun) == Dropped()
    assert await select(effects, "select count(*) from effects") == [(1,)]


async def test_an_exception_after_the_commit_does_not_undo_it(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        await note(context)
        raise ValueError("too late")

    verdict = await Bench(run, effects).runner.attempt(await begun_envelope(effects))
    assert verdict == Finished("done", recorded=True)
    assert await select(effects, "select count(*) from effects") == [(1,)]


async def test_a_timeout_after_the_commit_does_not_undo_it(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        await note(context)
        return await sleeps(message, context)

    bench = Bench(run, effects, HandlerPolicy(timeout_seconds=1.0))
    with anyio.fail_after(PATIENCE_SECONDS):
        verdict = await bench.runner.attempt(await begun_envelope(effects))
    assert verdict == Finished("done", recorded=True)


async def test_an_exception_in_the_transaction_undoes_it(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        async with context.transaction() as connection:
            await connection.execute("insert into effects values (%s)", [context.message_id])
            raise ValueError("oh")

    begun = await begun_envelope(effects)
    before = await places(effects)
    verdict = await Bench(run, effects).runner.attempt(begun)
    assert error_of(verdict) == "ValueError: oh"
    assert await places(effects) == before
    assert await select(effects, "select count(*) from effects") == [(0,)]


async def test_a_row_that_was_refused_is_neither_recorded_nor_logged(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        async with context.transaction() as connection:
            await connection.execute(
                "insert into dead_letters values (gen_random_uuid(), 'a', %s, '{}', %s, 0)",
                ["victim@private.example", "OTP is 4711"],
            )
        return DONE

    with structlog.testing.capture_logs() as logged:
        verdict = await Bench(run, effects).runner.attempt(await begun_envelope(effects))
    assert "OTP is 4711" in str(logged[0]["exc_info"])
    written = str([scrub(None, "", format_exc_info(None, "", event)) for event in logged])
    assert written.count("violates check constraint") == 2
    assert error_of(verdict).startswith("CheckViolation: new row for relation")
    for text in (written, error_of(verdict)):
        assert "victim" not in text
        assert "4711" not in text


async def test_a_handler_that_swallows_the_end_of_its_attempt_has_no_effect(
    effects: Database,
) -> None:
    reached = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        try:
            await note(context)
            reached.append("the effect")
        except AttemptOver:
            pass
        return DONE

    begun = await begun_envelope(effects)
    await put_back(effects, PutBack(token=token_of_envelope(begun)))
    before = await places(effects)
    assert await Bench(run, effects).runner.attempt(begun) == Dropped()
    assert reached == []
    assert await places(effects) == before
    assert await select(effects, "select count(*) from effects") == [(0,)]


def token_of_envelope(begun: Envelope) -> Token:
    return Token(begun.message_id, begun.handover)


async def test_a_second_transaction_is_refused(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        try:
            async with context.transaction():
                raise ValueError
        except ValueError:
            await note(context)
        return DONE

    verdict = await Bench(run, effects).runner.attempt(await begun_envelope(effects))
    assert error_of(verdict).startswith(f"{TransactionUsedUp.__name__}: an attempt has one")
    assert await select(effects, "select count(*) from effects") == [(0,)]


async def test_a_message_without_a_row_has_its_effect_once(effects: Database) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        await note(context)
        return DONE

    bench = Bench(run, effects)
    assert await bench.runner.attempt(envelope()) == Finished("done", recorded=True)
    assert await bench.runner.attempt(envelope()) == Dropped()
    assert await select(effects, "select count(*) from effects") == [(1,)]


async def test_a_rival_waits_for_the_first_and_has_no_effect(effects: Database) -> None:
    inside, go_on = anyio.Event(), anyio.Event()

    async def slow(message: EmailRequested, context: HandlerContext) -> Outcome:
        async with context.transaction() as connection:
            await connection.execute("insert into effects values (%s)", [context.message_id])
            inside.set()
            await go_on.wait()
        return DONE

    async def rival(message: EmailRequested, context: HandlerContext) -> Outcome:
        await note(context)
        return DONE

    begun = await begun_envelope(effects)
    verdicts: dict[str, Verdict] = {}

    async def attempt(name: str, run: Run) -> None:
        verdicts[name] = await Bench(run, effects).runner.attempt(begun)

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(attempt, "slow", slow)
            await inside.wait()
            group.start_soon(attempt, "rival", rival)
            async with await psycopg.AsyncConnection.connect(effects.url) as watcher:
                await waits_for_a_lock(watcher)
            assert verdicts == {}
            go_on.set()
    assert verdicts == {"slow": Finished("done", recorded=True), "rival": Dropped()}
    assert await select(effects, "select count(*) from effects") == [(1,)]


async def waits_for_a_lock(watcher: psycopg.AsyncConnection) -> None:
    await watcher.set_autocommit(True)
    while True:
        found = await watcher.execute("select from pg_locks where not granted")
        if await found.fetchone() is not None:
            return
