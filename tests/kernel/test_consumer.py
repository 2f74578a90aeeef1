from pathlib import Path

import anyio
import pytest

from couponflow.kernel import outbox_rows
from couponflow.kernel.controls import set_control
from couponflow.kernel.database import Database
from couponflow.kernel.handlers import (
    DONE,
    DeliveryError,
    Discard,
    HandlerContext,
    HandlerPolicy,
    Outcome,
    Retry,
    RetryPolicy,
    Snooze,
)
from couponflow.messages import EmailRequested
from tests.kernel.consuming import AT_ONCE, Plant, at_work, plant
from tests.kernel.outboxes import (
    CHANNEL,
    OTHER_WORKER,
    claim,
    expire,
    free_lapsed,
    message_id,
    places,
    publish_emails,
    register,
    select,
)
from tests.samples import until

COUNT = 60


@pytest.fixture
async def effects(database: Database) -> Database:
    """A database in which a handler can have effects."""
    async with database.connection() as connection:
        await connection.execute("create table effects (id uuid not null)")
    return database


async def note(message: EmailRequested, context: HandlerContext) -> Outcome:
    async with context.transaction() as connection:
        await connection.execute("insert into effects values (%s)", [context.message_id])
    return DONE


async def effects_of(database: Database) -> list[object]:
    return [row[0] for row in await select(database, "select id::text from effects order by 1")]


class Gated:
    """A handler that waits until it is let go, and tells how many were at it at once."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.begun: list[str] = []
        self.go_on = anyio.Event()

    async def run(self, message: EmailRequested, context: HandlerContext) -> Outcome:
        self.begun.append(context.message_id)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go_on.wait()
        self.running -= 1
        return DONE


async def test_every_message_is_done_once(effects: Database, tmp_path: Path) -> None:
    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, COUNT)
        async with at_work(built, built.consumers(note)):
            await built.until_empty()
        assert await effects_of(effects) == published
        assert (built.counts.done, built.counts.duplicate) == (COUNT, 0)
        assert await select(effects, "select count(*) from processed_messages") == [(COUNT,)]
        assert built.lease.jobs_done == COUNT
        assert built.lease.in_hand == set()


async def test_a_message_that_comes_again_has_no_second_effect(
    effects: Database, tmp_path: Path
) -> None:
    async with plant(effects, tmp_path) as built:
        [published] = await publish_emails(effects, 1)
        handed: list[EmailRequested] = []

        async def twice(message: EmailRequested, context: HandlerContext) -> Outcome:
            handed.append(message)
            if len(handed) == 1:
                # The lease is lost in the middle of it, and another attempt is made.
                await expire(effects, built.lease.worker_id)
                await free_lapsed(effects)
                built.lease.worker_id = ""
                await built.lease._beat()
                await until(lambda: len(handed) == 2)
            return await note(message, context)

        async with at_work(built, built.consumers(twice)):
            await until(lambda: built.counts.done + built.counts.duplicate >= 1)
            await until(lambda: len(handed) >= 2 and built.counts.done == 1)
            await built.until_empty()
        assert await effects_of(effects) == [published]


@pytest.mark.parametrize(("concurrency", "consumers"), [(1, 1), (1, 3), (3, 2), (8, 2)])
async def test_no_more_are_at_work_than_may_be(
    database: Database, tmp_path: Path, concurrency: int, consumers: int
) -> None:
    gated = Gated()
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 20)
        group = built.consumers(gated.run, concurrency=concurrency, consumers=consumers)
        async with at_work(built, group):
            await until(
                lambda: (
                    gated.running == max(1, concurrency // consumers) * min(consumers, concurrency)
                )
            )
            gated.go_on.set()
            await built.until_empty()
        assert gated.most <= concurrency
        assert len(gated.begun) == 20


async def test_an_operators_limit_holds_for_all_consumers_together(
    database: Database, tmp_path: Path
) -> None:
    gated = Gated()
    async with plant(database, tmp_path) as built:
        async with database.transaction() as connection:
            await set_control(connection, CHANNEL, concurrency=2, actor="test")
        await until(lambda: built.controls.of(CHANNEL).concurrency == 2)
        await publish_emails(database, 20)
        async with at_work(built, built.consumers(gated.run, concurrency=12, consumers=3)):
            await until(lambda: gated.running == 2)
            await until(lambda: len(built.lease.in_hand) == 20)
            assert gated.most == 2
            async with database.transaction() as connection:
                await set_control(connection, CHANNEL, concurrency=None, actor="test")
            await until(lambda: gated.running == 12)
            gated.go_on.set()
            await built.until_empty()
        assert gated.most == 12


async def test_an_operator_may_allow_more_than_the_settings(
    database: Database, tmp_path: Path
) -> None:
    gated = Gated()
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 20)
        async with at_work(built, built.consumers(gated.run, concurrency=3, consumers=3)):
            await until(lambda: gated.running == 3)
            async with database.transaction() as connection:
                await set_control(connection, CHANNEL, concurrency=12, actor="test")
            await until(lambda: gated.running == 12)
            gated.go_on.set()
            await built.until_empty()
        assert gated.most == 12


async def test_a_handlers_own_limit_holds_too(database: Database, tmp_path: Path) -> None:
    gated = Gated()
    async with plant(database, tmp_path) as built:
        await publish_emails(database, 20)
        policy = HandlerPolicy(concurrency=3)
        async with at_work(built, built.consumers(gated.run, policy, concurrency=10)):
            await until(lambda: gated.running == 3)
            gated.go_on.set()
            await built.until_empty()
        assert gated.most == 3


async def pause(built: Plant, paused: bool) -> None:
    async with built.database.transaction() as connection:
        await set_control(connection, CHANNEL, paused=paused, actor="test")
    await until(lambda: built.controls.of(CHANNEL).paused is paused)


async def test_a_paused_channel_begins_nothing_and_goes_on_when_it_is_resumed(
    effects: Database, tmp_path: Path
) -> None:
    async with plant(effects, tmp_path) as built, at_work(built, built.consumers(note)):
        await publish_emails(effects, 1)
        await built.until_empty()
        await pause(built, True)
        async with effects.connection() as connection:
            await connection.execute("delete from processed_messages")
        await publish_emails(effects, COUNT)
        await built.relay()._feeders[0]._hand_over()
        await anyio.wait_all_tasks_blocked()
        assert built.counts.done == 1
        await pause(built, False)
        await built.until_empty()
        assert built.counts.done == 1 + COUNT


async def test_a_paused_channel_does_not_hold_up_the_shutdown(
    effects: Database, tmp_path: Path
) -> None:
    async with plant(effects, tmp_path) as built:
        async with at_work(built, built.consumers(note)):
            await until(lambda: built.counts.consumers() == 2)
            await pause(built, True)
            await publish_emails(effects, 5)
            await built.relay()._feeders[0]._hand_over()
        assert built.counts.done == 0
    # What was on the channel is as it was before.
    assert [(place[1], place[4]) for place in await places(effects)] == [(None, 0)] * 5


async def test_a_rate_is_kept(database: Database, tmp_path: Path) -> None:
    begun: list[float] = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        begun.append(anyio.current_time())
        return DONE

    async with plant(database, tmp_path) as built:
        async with database.transaction() as connection:
            await set_control(connection, CHANNEL, rate_per_second=50, actor="test")
        await until(lambda: built.controls.of(CHANNEL).rate_per_second == 50)
        await publish_emails(database, 30)
        async with at_work(built, built.consumers(run)):
            await built.until_empty()
        # The first five at once, which is what a tenth of a second earns.
        assert begun[-1] - begun[0] >= 24 / 50 - 0.01


async def test_shutdown_finishes_what_is_on_the_channel(effects: Database, tmp_path: Path) -> None:
    gated = Gated()

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        await gated.run(message, context)
        return await note(message, context)

    async with plant(effects, tmp_path) as built:
        published = await publish_emails(effects, 15)
        async with at_work(built, built.consumers(run)):
            await until(lambda: gated.running == 10 and len(built.lease.in_hand) == 15)
            gated.go_on.set()
        assert await effects_of(effects) == published
        assert await places(effects) == []


async def test_consumers_that_are_cancelled_lose_nothing(effects: Database, tmp_path: Path) -> None:
    gated = Gated()
    async with plant(effects, tmp_path) as built:
        await publish_emails(effects, 15)
        async with anyio.create_task_group() as group:
            group.start_soon(cancelled_at_work, built, gated)
            await until(lambda: gated.running == 10)
            group.cancel_scope.cancel()
    assert [(place[1], place[4]) for place in await places(effects)] == [(None, 0)] * 15
    async with plant(effects, tmp_path) as again, at_work(again, again.consumers(note)):
        await again.until_empty()
    assert len(await effects_of(effects)) == 15


async def cancelled_at_work(built: Plant, gated: Gated) -> None:
    async with at_work(built, built.consumers(gated.run)):
        await anyio.sleep_forever()


async def test_consumers_that_start_again_go_on_with_what_they_had(
    effects: Database, tmp_path: Path
) -> None:
    gated = Gated()
    async with plant(effects, tmp_path) as built:
        await publish_emails(effects, 10)
        async with anyio.create_task_group() as group:
            group.start_soon(cancelled_at_work, built, gated)
            await until(lambda: gated.running == 10)
            group.cancel_scope.cancel()
        async with at_work(built, built.consumers(note)):
            await built.until_empty()
        assert len(await effects_of(effects)) == 10


@pytest.mark.parametrize(
    ("outcome", "left", "discarded", "dead"),
    [(Discard("old"), 0, 1, 0), (Snooze(4_000_000_000), 1, 0, 0), (Retry(0.0, "no"), 0, 0, 1)],
)
async def test_each_outcome_is_written_down(
    database: Database, tmp_path: Path, outcome: Outcome, left: int, discarded: int, dead: int
) -> None:
    attempts: list[int] = []

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        attempts.append(context.attempt)
        return outcome

    async with plant(database, tmp_path) as built:
        await publish_emails(database, 1)
        async with at_work(built, built.consumers(run)):
            await until(lambda: built.counts.snoozed + built.counts.discarded == 1 - dead)
            await until(lambda: built.counts.dead == dead)
        assert await built.left() == left
    assert (
        await select(database, "select outcome from processed_messages")
        == [("discarded",)] * discarded
    )
    assert await select(database, "select attempts, reason from dead_letters") == [(3, "no")] * dead
    assert attempts == ([1, 2, 3] if dead else [1])


async def test_a_dead_message_tells_of_every_attempt(database: Database, tmp_path: Path) -> None:
    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        raise DeliveryError(f"refusal {context.attempt}", permanent=False)

    async with plant(database, tmp_path) as built:
        await publish_emails(database, 1)
        async with at_work(built, built.consumers(run)):
            await until(lambda: built.counts.dead == 1)
        [(reason, errors)] = await select(database, "select reason, errors from dead_letters")
    assert reason == "DeliveryError: refusal 3"
    assert isinstance(errors, list)
    assert [(each["attempt"], each["worker"], each["error"]) for each in errors] == [
        (n, built.lease.name, f"DeliveryError: refusal {n}") for n in (1, 2, 3)
    ]
    assert built.counts.retry == 2


async def die_at_work(database: Database, killer: str, count: int) -> bool:
    """Let a worker begin what it would, and die if the killer is among it; False if it is not."""
    await register(database, OTHER_WORKER)
    async with database.connection() as connection:
        rows = await outbox_rows.claim_lapsed(connection, CHANNEL, OTHER_WORKER, begun=True)
    rows += await claim(database, count, owner=OTHER_WORKER)
    if killer not in [row.message_id for row in rows]:
        async with database.connection() as connection:
            await outbox_rows.release_all(connection, OTHER_WORKER)
            await connection.execute("delete from workers where id = %s", [OTHER_WORKER])
        return False
    async with database.connection() as connection:
        await connection.execute("delete from workers where id = %s", [OTHER_WORKER])
    await free_lapsed(database)
    return True


async def test_a_message_that_kills_its_worker_dies_alone(
    effects: Database, tmp_path: Path
) -> None:
    published = await publish_emails(effects, 10)
    killer = message_id(1)
    deaths = 0
    for _ in range(3):
        deaths += await die_at_work(effects, killer, 10)
    assert deaths == 3

    async def run(message: EmailRequested, context: HandlerContext) -> Outcome:
        assert context.message_id != killer
        return await note(message, context)

    policy = HandlerPolicy(retry=RetryPolicy(max_attempts=3))
    async with plant(effects, tmp_path) as built:
        async with at_work(built, built.consumers(run, policy)):
            await built.until_empty()
        assert (built.counts.done, built.counts.dead) == (9, 1)
    assert await effects_of(effects) == published[1:]
    assert await select(effects, "select message_id, attempts, reason from dead_letters") == [
        (killer, 3, "attempt 3 of 3 ended with its worker")
    ]


async def test_lapsed_messages_are_at_work_one_at_a_time(
    database: Database, tmp_path: Path
) -> None:
    await publish_emails(database, 3)
    assert await die_at_work(database, message_id(1), 3)
    gated = Gated()
    async with plant(database, tmp_path) as built:
        async with at_work(built, built.consumers(gated.run, AT_ONCE)):
            await until(lambda: gated.running == 1)
            await built.relay()._feeders[0]._hand_over()
            await anyio.wait_all_tasks_blocked()
            assert gated.begun == [message_id(1)]
            gated.go_on.set()
            await built.until_empty()
        assert gated.most == 1
