from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from couponflow.clicks import store
from couponflow.clicks.audit import INVARIANTS
from couponflow.clicks.batch_writer import BatchWriter
from couponflow.clicks.partitions import PartitionMissing, Partitions
from couponflow.kernel.audit import AuditScope, run_audit
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.messages import Click
from tests.samples import (
    CLICKED_AT,
    MERCHANT_ID,
    OFFER_ID,
    OTHER_MERCHANT_ID,
    OTHER_OFFER_ID,
    USER_ID,
    insert_catalogue,
    make_click,
    rows_of,
)

DAY_SECONDS = 86_400
STORED = "select external_click_id::text from affiliate_clicks order by 1"
BURIED = "select message_id, reason, attempts from dead_letters order by message_id"


class Writing:
    """A writer with what it counts."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.metrics = ChannelCounts()
        clock = ManualClock()
        partitions = Partitions(database, clock, 7)
        self.writer = BatchWriter(database, partitions, Uuid7Generator(), clock, self.metrics)

    async def write(self, *clicks: Click, attempt: int = 1) -> tuple[int, int, int]:
        """Write a batch; what has been stored, known before and buried so far."""
        await self.writer.write(clicks, attempt)
        return self.metrics.done, self.metrics.duplicate, self.metrics.dead

    async def stored(self) -> list[object]:
        return [row[0] for row in await rows_of(self.database.url, STORED)]

    async def buried(self) -> dict[object, tuple[object, ...]]:
        return {row[0]: row[1:] for row in await rows_of(self.database.url, BURIED)}

    async def tables(self) -> list[object]:
        """Everything that a replay must leave as it is."""
        return [
            await rows_of(self.database.url, f"select * from {table} order by 1, 2")
            for table in ("affiliate_clicks", "click_minutes", "click_totals", "dead_letters")
        ]


@pytest.fixture
async def writing(database: Database) -> Writing:
    async with database.connection() as connection:
        await insert_catalogue(connection)
    return Writing(database)


def ids(*numbers: int) -> list[str]:
    return [make_click(number).click_id for number in numbers]


async def audit_holds(database: Database) -> bool:
    scope = AuditScope(database, Path())
    return all(finding.ok for finding in await run_audit(INVARIANTS, scope))


async def test_new_clicks_and_duplicates_are_counted_exactly(writing: Writing) -> None:
    assert await writing.write(make_click(1), make_click(2)) == (2, 0, 0)
    assert await writing.write(make_click(2), make_click(3), make_click(3)) == (3, 2, 0)
    assert await writing.stored() == ids(1, 2, 3)


async def test_an_empty_batch_is_nothing(writing: Writing) -> None:
    assert await writing.write() == (0, 0, 0)


async def test_a_replay_changes_nothing(writing: Writing) -> None:
    batch = [
        make_click(1),
        make_click(2, verdict="bot", clicked_at=CLICKED_AT - 3600),
        make_click(3, offer_id=OTHER_OFFER_ID, merchant_id=OTHER_MERCHANT_ID),
        make_click(4, offer_id=USER_ID),
        make_click(5, user_agent="\0"),
    ]
    assert await writing.write(*batch) == (3, 0, 2)
    before = await writing.tables()
    assert await writing.write(*batch, attempt=2) == (3, 3, 4)
    assert await writing.tables() == before
    assert await audit_holds(writing.database)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_agent": "a\0b"}, "invalid byte sequence"),
        ({"ip": "nowhere"}, "invalid input syntax for type inet"),
        ({"user_id": "someone"}, "invalid input syntax for type uuid"),
        ({"verdict": "alien"}, "violates check constraint"),
        ({"offer_id": "no-uuid"}, "offer no-uuid does not exist"),
        ({"offer_id": "nul\0"}, "offer nul\ufffd does not exist"),
        ({"offer_id": USER_ID}, f"offer {USER_ID} does not exist"),
        ({"offer_id": OTHER_OFFER_ID}, f"is of merchant {OTHER_MERCHANT_ID}"),
        ({"merchant_id": "no-uuid"}, f"is of merchant {MERCHANT_ID}"),
        ({"clicked_at": CLICKED_AT - 500 * DAY_SECONDS}, "is not plausible"),
        ({"clicked_at": CLICKED_AT + 30 * DAY_SECONDS}, "is not plausible"),
    ],
)
async def test_a_bad_click_is_buried_alone_with_its_reason(
    writing: Writing, changes: dict[str, str | float], reason: str
) -> None:
    batch = [make_click(number) for number in range(1, 21)]
    batch[12] = make_click(13, **changes)
    assert await writing.write(*batch, attempt=4) == (19, 0, 1)
    assert await writing.stored() == ids(*range(1, 13), *range(14, 21))
    (letter,) = (await writing.buried()).items()
    assert letter[0] == ids(13)[0]
    assert reason in str(letter[1][0])
    assert letter[1][1] == 4
    assert await audit_holds(writing.database)


async def test_a_click_id_that_is_none_is_buried_under_it(writing: Writing) -> None:
    bad = [make_click(click_id=name) for name in ("no-uuid", "", "nul\0")]
    assert await writing.write(make_click(1), *bad) == (1, 0, 3)
    assert set(await writing.buried()) == {"no-uuid", "", "nul\ufffd"}


async def test_several_bad_clicks_of_different_kinds_are_all_found(writing: Writing) -> None:
    bad = {
        3: make_click(3, ip="x"),
        4: make_click(4, verdict="y"),
        50: make_click(50, offer_id="z"),
        51: make_click(51, offer_id=USER_ID),
        99: make_click(99, referer="\0"),
    }
    batch = [bad.get(number) or make_click(number) for number in range(1, 101)]
    assert await writing.write(*batch) == (95, 0, 5)
    assert set(await writing.buried()) == set(ids(*bad))
    assert await audit_holds(writing.database)


async def test_a_buried_message_can_be_read_again(writing: Writing) -> None:
    click = make_click(1, ip="nowhere")
    await writing.write(click)
    rows = await rows_of(writing.database.url, "select channel, message::text from dead_letters")
    ((channel, message),) = rows
    assert channel == "clicks"
    assert msgspec.json.decode(str(message), type=Click) == click


async def test_a_batch_over_midnight_makes_the_partitions_it_needs(writing: Writing) -> None:
    midnight = datetime(2026, 9, 22, tzinfo=UTC).timestamp()
    moments = [midnight - 0.001, midnight, midnight - 3 * DAY_SECONDS]
    clicks = [make_click(number, clicked_at=moment) for number, moment in enumerate(moments)]
    assert await writing.write(*clicks) == (3, 0, 0)
    query = "select tableoid::regclass::text from affiliate_clicks order by 1"
    assert await rows_of(writing.database.url, query) == [
        ("affiliate_clicks_2026_09_19",),
        ("affiliate_clicks_2026_09_21",),
        ("affiliate_clicks_2026_09_22",),
    ]


async def execute(database: Database, statement: bytes) -> None:
    async with database.connection() as connection:
        await connection.execute(statement)


async def test_clicks_of_a_day_whose_partition_was_dropped_are_stored(writing: Writing) -> None:
    assert await writing.write(make_click(1)) == (1, 0, 0)
    await execute(writing.database, b"drop table affiliate_clicks_2026_09_21")
    assert await writing.write(make_click(2), make_click(3, verdict="alien")) == (2, 0, 1)
    assert await writing.stored() == ids(2)
    assert set(await writing.buried()) == set(ids(3))
    assert await audit_holds(writing.database)


async def test_clicks_without_a_possible_partition_wait_and_are_not_buried(
    writing: Writing,
) -> None:
    assert await writing.write(make_click(1)) == (1, 0, 0)
    detach = b"alter table affiliate_clicks detach partition affiliate_clicks_2026_09_21"
    await execute(writing.database, detach)
    with pytest.raises(PartitionMissing):
        await writing.write(make_click(2), make_click(3))
    assert await writing.buried() == {}
    await execute(writing.database, b"drop table affiliate_clicks_2026_09_21")
    assert await writing.write(make_click(2), make_click(3)) == (3, 0, 0)


async def test_a_default_partition_takes_the_days_it_has_clicks_of(writing: Writing) -> None:
    await execute(writing.database, b"create table others partition of affiliate_clicks default")
    async with writing.database.transaction() as connection:
        await store.insert_new_clicks(connection, [make_click(1)])
    assert await writing.write(make_click(1), make_click(2)) == (1, 1, 0)
    assert await writing.stored() == ids(1, 2)
    assert await audit_holds(writing.database)


def varied_click(number: int) -> Click:
    """Clicks of two merchants, three verdicts and seven minutes."""
    other = number % 2
    return make_click(
        number,
        offer_id=OTHER_OFFER_ID if other else OFFER_ID,
        merchant_id=OTHER_MERCHANT_ID if other else MERCHANT_ID,
        verdict=("human", "bot", "prefetch")[number % 3],
        clicked_at=CLICKED_AT + number % 7 * 60,
    )


async def test_writers_at_once_in_opposite_order_do_not_deadlock(writing: Writing) -> None:
    """They share all counters; PostgreSQL would end one of two that wait for each other."""
    writers = [Writing(writing.database) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for number, other in enumerate(writers):
            mine = [varied_click(n) for n in range(number * 400, number * 400 + 400)]
            for start in range(0, 400, 100):
                batch = mine[start : start + 100]
                tasks.start_soon(other.write, *(batch if number % 2 else batch[::-1]))
    assert sum(other.metrics.done for other in writers) == 1600
    assert len(await writing.stored()) == 1600
    assert await audit_holds(writing.database)


async def test_ten_thousand_clicks_are_one_batch(writing: Writing) -> None:
    clicks = [make_click(number) for number in range(10_000)]
    assert await writing.write(*clicks) == (10_000, 0, 0)
    assert len(await writing.stored()) == 10_000
    assert await audit_holds(writing.database)
