import random
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from couponflow.config import DatabaseSettings
from couponflow.kernel.channel import Delivery
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.dead_letters import AttemptError
from couponflow.kernel.envelope import Envelope
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.outbox_rows import PutBack, Token
from couponflow.kernel.settlement import Dead, Dropped, Finished, Later, Settler, Verdict
from tests.fault_proxy import fault_proxy, postgres_target
from tests.kernel.consuming import Plant, plant
from tests.kernel.outboxes import (
    claim,
    envelope,
    message_id,
    places,
    publish_emails,
    put_back,
    select,
)
from tests.samples import PATIENCE_SECONDS, until

ERROR = AttemptError(1, 5.0, "host:1", "refused")


class Acknowledged:
    """A subscription that notes what it is told."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    async def receive(self, max_messages: int, linger_seconds: float) -> list[Delivery[Envelope]]:
        return []

    async def acknowledge(self, deliveries: Sequence[Delivery[Envelope]]) -> None:
        self.tags += [delivery.tag for delivery in deliveries]

    async def reject(self, deliveries: Sequence[Delivery[Envelope]]) -> None:
        raise NotImplementedError


class Settling:
    """A settler, and what it says to its channel."""

    def __init__(self, built: Plant) -> None:
        self.subscription = Acknowledged()
        self.counts = ChannelCounts()
        self.settler = Settler(
            built.database,
            self.subscription,
            built.ids,
            random.Random(1),
            self.counts,
            built.lease,
            built.clock,
        )

    async def settle(self, *judged: tuple[Envelope, Verdict]) -> None:
        """Settle all of it as one batch."""
        for number, (message, verdict) in enumerate(judged, 1):
            self.settler.settle(Delivery(message, str(number), 1), verdict)
        self.settler.close()
        with anyio.fail_after(PATIENCE_SECONDS):
            await self.settler.run()

    def counted(self) -> dict[str, int]:
        names = ("done", "duplicate", "discarded", "dead", "retry", "snoozed", "fenced")
        return {name: count for name in names if (count := getattr(self.counts, name))}


async def begun(built: Plant, count: int) -> list[Envelope]:
    """Envelopes of messages that this worker has begun."""
    await publish_emails(built.database, count)
    rows = await claim(built.database, owner=built.lease.worker_id)
    return [
        envelope(number=number, attempt=row.attempt, handover=row.handover, begun=True)
        for number, row in enumerate(rows, 1)
    ]


async def test_a_batch_of_verdicts_is_written_and_then_acknowledged(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        one, two, three, four, five = await begun(built, 5)
        settling = Settling(built)
        await settling.settle(
            (one, Finished("done")),
            (two, Finished("discarded")),
            (three, Later(after_seconds=60, error=ERROR)),
            (four, Later(available_at=4e9, forgiven=True)),
            (five, Dead(reason="no", error=ERROR, attempts=7)),
        )
        assert settling.subscription.tags == ["1", "2", "3", "4", "5"]
        error = {"attempt": 1, "at": 5.0, "worker": "host:1", "error": "refused"}
        assert await places(database) == [
            (message_id(3), None, False, None, 1, 2, False, [error]),
            (message_id(4), None, False, None, 0, 2, False, []),
        ]
        assert await select(
            database, "select message_id::text, outcome from processed_messages order by 1"
        ) == [(message_id(1), "done"), (message_id(2), "discarded")]
        assert await select(
            database,
            "select message_id, reason, attempts, correlation_id, errors from dead_letters",
        ) == [(message_id(5), "no", 7, "story-5", [error])]
        assert settling.counted() == {
            "done": 1,
            "discarded": 1,
            "retry": 1,
            "snoozed": 1,
            "dead": 1,
        }


async def test_what_is_another_workers_by_now_is_fenced(database: Database, tmp_path: Path) -> None:
    async with plant(database, tmp_path) as built:
        envelopes = await begun(built, 4)
        tokens = [Token(each.message_id, each.handover) for each in envelopes]
        await put_back(database, *(PutBack(token=token) for token in tokens))
        before = await places(database)
        settling = Settling(built)
        verdicts = [Finished("done"), Later(error=ERROR), Dead(reason="no"), Dropped()]
        await settling.settle(*zip(envelopes, verdicts, strict=True))
        assert await places(database) == before
        assert await select(database, "select 1 from processed_messages") == []
        assert await select(database, "select 1 from dead_letters") == []
        assert settling.subscription.tags == ["1", "2", "3", "4"]
        assert settling.counted() == {"fenced": 3, "duplicate": 1}


async def test_a_message_that_was_done_before_loses_its_row(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        [one] = await begun(built, 1)
        async with database.connection() as connection:
            await connection.execute(
                "insert into processed_messages values (%s, 'emails', 'discarded')",
                [one.message_id],
            )
        settling = Settling(built)
        await settling.settle((one, Dropped()))
        assert await places(database) == []
        assert await select(database, "select outcome from processed_messages") == [("discarded",)]
        assert settling.counted() == {"duplicate": 1}


async def test_messages_without_a_row_are_buried_or_taken_in(
    database: Database, tmp_path: Path
) -> None:
    async with plant(database, tmp_path) as built:
        settling = Settling(built)
        await settling.settle(
            (envelope(number=1), Finished("done")),
            (envelope(number=2), Dead(reason="no", error=ERROR)),
            (envelope(number=3, attempt=2), Later(after_seconds=60, error=ERROR, lapsed=True)),
            (envelope(number=4), Later(available_at=4e9, forgiven=True)),
            (envelope(number=5), Dropped()),
        )
        assert [(place[0], place[4], place[6]) for place in await places(database)] == [
            (message_id(3), 2, True),
            (message_id(4), 0, False),
        ]
        assert await select(database, "select message_id, attempts from dead_letters") == [
            (message_id(2), 1)
        ]
        assert settling.counted() == {
            "done": 1,
            "duplicate": 1,
            "dead": 1,
            "retry": 1,
            "snoozed": 1,
        }


async def test_a_lost_answer_is_no_reason_to_settle_otherwise(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        fault_proxy(*postgres_target(database_url)) as proxy,
        open_database(proxy.postgres_url(database_url), DatabaseSettings()) as database,
        plant(database, tmp_path) as built,
    ):
        [one] = await begun(built, 1)
        settling = Settling(built)
        # Without its I: with one PostgreSQL says that it is idle, and the proxy would keep it back.
        proxy.cut_after(b"NSERT 0 1", "to_client", drop_pattern=True)
        await settling.settle((one, Finished("done")))
        assert proxy.cuts == 1
        assert await places(database) == []
        assert settling.subscription.tags == ["1"]
        assert settling.counted() == {"done": 1}


async def test_a_message_can_be_waited_for(database: Database, tmp_path: Path) -> None:
    async with plant(database, tmp_path) as built:
        one, two = await begun(built, 2)
        settling = Settling(built)
        settled: list[str] = []

        async def wait() -> None:
            await settling.settler.settle_now(Delivery(one, "1", 1), Finished("done"))
            settled.append("1")

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert settled == []
            group.start_soon(settling.settler.run)
            await until(lambda: settled == ["1"])
            assert settling.subscription.tags == ["1"]
            settling.settler.settle(Delivery(two, "2", 1), Finished("done"))
            settling.settler.close()
        assert await places(database) == []


async def test_what_is_settled_is_out_of_hand_and_the_next_lapsed_may_come(
    database: Database, tmp_path: Path
) -> None:
    freed = 0

    def count() -> None:
        nonlocal freed
        freed += 1

    async with plant(database, tmp_path) as built:
        one, two = await begun(built, 2)
        built.lease.in_hand = {one.message_id, two.message_id}
        built.lease.on_freed = count
        await Settling(built).settle((one, Finished("done")))
        assert (built.lease.in_hand, freed) == ({two.message_id}, 0)
        lapsed = Envelope(
            message_id=two.message_id,
            message=two.message,
            correlation_id="",
            published_at=0.0,
            handover=two.handover,
            begun=True,
            lapsed=True,
        )
        await Settling(built).settle((lapsed, Finished("done")))
        assert (built.lease.in_hand, freed) == (set(), 1)


@pytest.mark.parametrize("text", ["lone \ud800", "NUL \0"])
async def test_an_error_that_postgres_cannot_hold_is_settled(
    database: Database, tmp_path: Path, text: str
) -> None:
    error = AttemptError(1, 5.0, "host:1", text)
    async with plant(database, tmp_path) as built:
        [one] = await begun(built, 1)
        settling = Settling(built)
        await settling.settle((one, Later(error=error)), (envelope(number=2), Later(error=error)))
        assert await select(database, "select jsonb_array_length(errors) from outbox") == [(1,)] * 2
