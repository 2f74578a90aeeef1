import contextlib
import random
from collections.abc import Sequence
from typing import TypeVar

import anyio
import msgspec
import psycopg
import pytest
import structlog

from couponflow.config import DatabaseSettings
from couponflow.kernel import outbox_rows, together
from couponflow.kernel.breaker import DeadLetterBreaker
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.commit_outcome import CommitUnknown
from couponflow.kernel.database import Connection, Database, DatabaseAway, open_database
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.handler_runner import HandlerRunner
from couponflow.kernel.handlers import Handler, HandlerPolicy, Told
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.outbox_rows import PutBack, Token
from couponflow.kernel.settlement import Dropped, Finished
from couponflow.kernel.together import TOGETHER_MAX, SomeWereTaken, attempt_together
from couponflow.messages import EmailRequested, Message
from tests.fault_proxy import fault_proxy, postgres_target
from tests.kernel.consuming import RunTogether
from tests.kernel.outboxes import (
    CHANNEL,
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
    until_rows,
)
from tests.kernel.test_consumer import effects, effects_of, note
from tests.kernel.test_handler_runner import waits_for_a_lock
from tests.samples import CLICKED_AT, PATIENCE_SECONDS

pytestmark = pytest.mark.once

__all__ = ["effects"]

M = TypeVar("M", bound=Message)
SOON_SECONDS = 0.3


async def note_together(told: Sequence[Told[M]], connection: Connection) -> list[str]:
    ids = [each.message_id for each in told]
    await connection.execute("insert into effects select unnest(%s::uuid[])", [ids])
    return ids


class Bench:
    """A runner with one handler that can have several messages at once, unless it is told not."""

    def __init__(
        self,
        database: Database,
        run_together: RunTogether | None = note_together,
        policy: HandlerPolicy | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.counts = ChannelCounts()
        self.breaker = DeadLetterBreaker(self.clock)
        self.runner = HandlerRunner(
            [Handler("test", EmailRequested, note, policy or HandlerPolicy(), run_together)],
            database=database,
            clock=self.clock,
            randomness=random.Random(1),
            counts=self.counts,
            breaker=self.breaker,
            worker_name="host:1",
        )


async def begun(database: Database, count: int) -> list[Envelope]:
    """Emails 1 to `count`, whose first attempts are begun."""
    await register(database, WORKER)
    await publish_emails(database, count)
    return [
        envelope(number=number, attempt=row.attempt, handover=row.handover, begun=True)
        for number, row in enumerate(await claim(database), 1)
    ]


async def kept(database: Database) -> tuple[list[object], list[object], list[object]]:
    """The messages that have their effect, that are done, and that wait to be."""
    done = await select(database, "select message_id::text from processed_messages order by 1")
    waiting = await places(database)
    return await effects_of(database), [row[0] for row in done], [place[0] for place in waiting]


def ids(*numbers: int) -> list[str]:
    return [message_id(number) for number in numbers]


def token(begun: Envelope) -> Token:
    return Token(begun.message_id, begun.handover)


@pytest.mark.parametrize(
    ("one", "most"),
    [
        (envelope(handover=1, begun=True), TOGETHER_MAX),
        (envelope(handover=2, attempt=2, begun=True), 1),
        (msgspec.structs.replace(envelope(handover=2, begun=True), lapsed=True), 1),
        # Nothing would say that it is done.
        (envelope(), 1),
        (envelope(sms(), handover=1, begun=True), 1),
    ],
)
def test_a_message_goes_together_with_others_until_an_attempt_went_wrong(
    one: Envelope, most: int
) -> None:
    nowhere = Database("postgresql://nowhere", DatabaseSettings())
    assert Bench(nowhere).runner.together_max(one) == most
    assert Bench(nowhere, None).runner.together_max(one) == 1


async def test_all_effects_and_records_are_one_commit(effects: Database) -> None:
    given: list[Told[EmailRequested]] = []
    transactions: list[object] = []

    async def run(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
        given.extend(told)
        transactions.append(await transaction_id(connection))
        bench.clock.advance(2)
        return await note_together(told, connection)

    bench = Bench(effects, run)
    assert await bench.runner.attempt_together(await begun(effects, 3)) == set(ids(1, 2, 3))
    assert given == [
        Told(
            message=email(number),
            message_id=message_id(number),
            correlation_id=f"story-{number}",
            published_at=CLICKED_AT,
        )
        for number in (1, 2, 3)
    ]
    assert await kept(effects) == (ids(1, 2, 3), ids(1, 2, 3), [])
    written = "select distinct xmin::text from {}"
    for table in ("effects", "processed_messages"):
        assert await select(effects, written.format(table)) == transactions
    samples = {s.name: s.value for s in bench.counts.seconds.metric("x", "x").samples}
    assert (samples["x_sum"], samples["x_count"]) == (6, 3)
    assert bench.breaker.detail() == "0 of the last 3 messages died"


async def transaction_id(connection: Connection) -> tuple[object, ...] | None:
    found = await connection.execute("select pg_current_xact_id()::xid::text")
    return await found.fetchone()


async def test_what_is_left_out_is_as_it_was(effects: Database) -> None:
    async def run(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
        return await note_together([told[0], told[2]], connection)

    envelopes = await begun(effects, 3)
    before = await places(effects)
    assert await Bench(effects, run).runner.attempt_together(envelopes) == set(ids(1, 3))
    assert await kept(effects) == (ids(1, 3), ids(1, 3), ids(2))
    assert await places(effects) == [before[1]]


async def raises(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
    await note_together(told, connection)
    raise ValueError("not these")


async def hides(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
    """What a statement is refused for is not to be hidden: it is the end of the transaction."""
    done = await note_together(told, connection)
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        await connection.execute("select 1/0")
    return done


async def adds(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
    return [*await note_together(told, connection), message_id(4)]


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (raises, "ValueError: not these"),
        (hides, "InFailedSqlTransaction: current transaction is aborted"),
        (adds, "ForeignIds: "),
    ],
)
async def test_whatever_goes_wrong_nothing_is_kept(
    effects: Database, run: RunTogether, error: str
) -> None:
    bench = Bench(effects, run)
    # The fourth is another's, or comes alone.
    envelopes = (await begun(effects, 4))[:3]
    before = await places(effects)
    with structlog.testing.capture_logs() as logged:
        assert await bench.runner.attempt_together(envelopes) == set()
    [event] = logged
    assert event["messages"] == 3
    assert event["error"].startswith(error)
    assert await kept(effects) == ([], [], ids(1, 2, 3, 4))
    assert await places(effects) == before
    # Whose fault it is, and whether it is one, is for the attempts alone to find out.
    assert bench.breaker.detail() == "0 of the last 0 messages died"


async def test_a_message_of_another_worker_by_now_keeps_all_from_being_done(
    effects: Database,
) -> None:
    envelopes = await begun(effects, 3)
    await put_back(effects, PutBack(token=token(envelopes[1])))
    with pytest.raises(SomeWereTaken):
        await attempt_together(effects, envelopes, note_together)
    assert await kept(effects) == ([], [], ids(1, 2, 3))
    assert await Bench(effects).runner.attempt_together(envelopes) == set()


async def test_a_message_that_was_done_before_keeps_all_from_being_done(effects: Database) -> None:
    envelopes = await begun(effects, 3)
    async with effects.connection() as connection:
        # Its row is still there, like that of one that was replayed.
        await outbox_rows.process(connection, message_id(2), CHANNEL)
    with pytest.raises(SomeWereTaken):
        await attempt_together(effects, envelopes, note_together)
    assert await kept(effects) == ([], ids(2), ids(1, 2, 3))


async def test_a_message_that_is_there_twice_has_no_second_effect(effects: Database) -> None:
    envelopes = await begun(effects, 2)
    with pytest.raises(SomeWereTaken):
        await attempt_together(effects, [*envelopes, envelopes[0]], note_together)
    assert await kept(effects) == ([], [], ids(1, 2))


@pytest.mark.parametrize("finishes", [False, True])
async def test_a_row_that_another_transaction_holds_is_waited_for(
    effects: Database, finishes: bool
) -> None:
    envelopes = await begun(effects, 3)
    found: list[object] = []

    async def attempt() -> None:
        found.append(await Bench(effects).runner.attempt_together(envelopes))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            await psycopg.AsyncConnection.connect(effects.url) as watcher,
            anyio.create_task_group() as group,
            effects.transaction() as rival,
        ):
            await rival.execute(
                "select from outbox where id = %s for update", [envelopes[1].message_id]
            )
            group.start_soon(attempt)
            await waits_for_a_lock(watcher)
            assert found == []
            if finishes:
                await rival.execute("delete from outbox where id = %s", [message_id(2)])
    if finishes:
        assert found == [set()]
        assert await kept(effects) == ([], [], ids(1, 3))
    else:
        assert found == [set(ids(1, 2, 3))]
        assert await kept(effects) == (ids(1, 2, 3), ids(1, 2, 3), [])


async def test_of_two_attempts_at_the_same_messages_one_has_effects(effects: Database) -> None:
    inside, go_on = anyio.Event(), anyio.Event()
    begun_by: list[int] = []

    async def slow(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
        begun_by.append(connection.info.backend_pid)
        done = await note_together(told, connection)
        inside.set()
        await go_on.wait()
        return done

    envelopes = await begun(effects, 3)
    found: list[int] = []

    async def attempt() -> None:
        found.append(len(await Bench(effects, slow).runner.attempt_together(envelopes)))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            await psycopg.AsyncConnection.connect(effects.url) as watcher,
            anyio.create_task_group() as group,
        ):
            group.start_soon(attempt)
            await inside.wait()
            group.start_soon(attempt)
            await waits_for_a_lock(watcher)
            go_on.set()
    assert found == [3, 0]
    assert len(begun_by) == 1, "whoever comes second waits before its effects"
    assert await kept(effects) == (ids(1, 2, 3), ids(1, 2, 3), [])


class Stuck:
    """A `run_together` that never ends the first time, after its effects."""

    def __init__(self) -> None:
        self.begun = anyio.Event()

    async def run(
        self, told: Sequence[Told[EmailRequested]], connection: Connection
    ) -> Sequence[str]:
        done = await note_together(told, connection)
        if not self.begun.is_set():
            self.begun.set()
            await anyio.sleep_forever()
        return done


async def test_what_takes_too_long_is_cancelled_and_keeps_no_slot(effects: Database) -> None:
    policy = HandlerPolicy(concurrency=1, timeout_seconds=SOON_SECONDS)
    bench = Bench(effects, Stuck().run, policy)
    envelopes = await begun(effects, 3)
    with anyio.fail_after(PATIENCE_SECONDS), structlog.testing.capture_logs() as logged:
        assert await bench.runner.attempt_together(envelopes) == set()
        assert await kept(effects) == ([], [], ids(1, 2, 3))
        # A slow machine may need a few times, but for each it needs the slot.
        while not await bench.runner.attempt_together(envelopes):
            pass
    assert logged[0]["error"].startswith("TimeoutError")
    assert await kept(effects) == (ids(1, 2, 3), ids(1, 2, 3), [])


async def test_what_is_cancelled_keeps_no_slot_and_is_not_under_way(effects: Database) -> None:
    stuck = Stuck()
    bench = Bench(effects, stuck.run, HandlerPolicy(concurrency=1))
    envelopes = await begun(effects, 3)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(bench.runner.attempt_together, envelopes)
            # It waits for the slot.
            group.start_soon(bench.runner.attempt_together, envelopes)
            await stuck.begun.wait()
            group.cancel_scope.cancel()
        assert await kept(effects) == ([], [], ids(1, 2, 3))
        assert bench.breaker._under_way == 0
        assert await bench.runner.attempt_together(envelopes) == set(ids(1, 2, 3))


async def test_an_attempt_at_several_takes_one_slot(effects: Database) -> None:
    running, most, gate = 0, 0, anyio.Event()

    async def run(told: Sequence[Told[EmailRequested]], connection: Connection) -> Sequence[str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            await anyio.wait_all_tasks_blocked()
            gate.set()
        await gate.wait()
        running -= 1
        return await note_together(told, connection)

    bench = Bench(effects, run, HandlerPolicy(concurrency=2))
    envelopes = await begun(effects, 8)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as group:
            for start in range(0, 8, 2):
                group.start_soon(bench.runner.attempt_together, envelopes[start : start + 2])
    assert most == 2
    assert len(await effects_of(effects)) == 8


async def test_messages_that_end_well_together_close_the_breaker(effects: Database) -> None:
    bench = Bench(effects)
    while bench.breaker.state == "closed":
        bench.breaker.record(dead=True)
    bench.clock.advance(60)
    assert bench.breaker.state == "half-open"
    await bench.runner.attempt_together(await begun(effects, 2))
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_whose_answer_is_lost_is_asked_for(effects: Database, arrives: bool) -> None:
    envelopes = await begun(effects, 3)
    async with (
        fault_proxy(*postgres_target(effects.url)) as proxy,
        open_database(proxy.postgres_url(effects.url), DatabaseSettings()) as proxied,
    ):
        proxy.cut_after(b"COMMIT\0", drop_pattern=not arrives)
        if arrives:
            assert await attempt_together(proxied, envelopes, note_together) == set(ids(1, 2, 3))
            assert await kept(effects) == (ids(1, 2, 3), ids(1, 2, 3), [])
        else:
            with pytest.raises(DatabaseAway):
                await attempt_together(proxied, envelopes, note_together)
            assert await kept(effects) == ([], [], ids(1, 2, 3))
        assert proxy.cuts == 1


async def test_after_a_commit_of_unknown_outcome_each_finds_what_became_of_it(
    effects: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "COMMIT_DEADLINE_SECONDS", SOON_SECONDS)
    settings = DatabaseSettings(connect_timeout_seconds=SOON_SECONDS)
    envelopes = await begun(effects, 3)
    async with (
        fault_proxy(*postgres_target(effects.url)) as proxy,
        open_database(proxy.postgres_url(effects.url), settings) as proxied,
    ):
        proxy.stall_after(b"COMMIT\0")
        with anyio.fail_after(PATIENCE_SECONDS), structlog.testing.capture_logs() as logged:
            assert await Bench(proxied).runner.attempt_together(envelopes) == set()
        assert logged[-1]["error"].startswith(CommitUnknown.__name__)
        proxy.heal()
    await until_rows(effects, "select count(*) from outbox", (0,))
    runner = Bench(effects).runner
    assert [await runner.attempt(each) for each in envelopes] == [Dropped()] * 3
    assert await kept(effects) == (ids(1, 2, 3), ids(1, 2, 3), [])


async def test_what_was_not_done_together_is_done_alone(effects: Database) -> None:
    envelopes = await begun(effects, 3)
    runner = Bench(effects, raises).runner
    assert await runner.attempt_together(envelopes) == set()
    assert await runner.attempt(envelopes[0]) == Finished("done", recorded=True)
    assert await kept(effects) == (ids(1), ids(1), ids(2, 3))
