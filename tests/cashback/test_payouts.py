from collections.abc import Sequence
from typing import get_args

import anyio
import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.kernel.attempt import AttemptOver
from couponflow.kernel.database import Database
from couponflow.messages import PayoutReported, PayoutState
from tests.cashback.reports import (
    ALL_ROWS,
    EMPTY_ALL,
    LOCK_WAITS,
    arrivals,
    check_batches,
    handle,
    handle_anew,
    handle_together,
    have_together,
    let_batches_meet,
    payout,
    run,
    told,
)
from tests.kernel.outboxes import message_id, select, until_rows
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

ROWS = (
    "select provider, payout_id, state, reference_id, amount_minor, currency, utr, reason,"
    " extract(epoch from occurred_at)::float8 from payouts"
)
STATES = "select state from payouts"
RANKS: tuple[tuple[PayoutState, ...], ...] = (
    ("pending", "queued", "scheduled"),
    ("processing",),
    ("rejected", "cancelled"),
    ("processed",),
    ("failed",),
    ("reversed",),
)


async def test_a_first_report_makes_a_payout_and_its_history(database: Database) -> None:
    await handle(database, payout(reference_id="w1", utr="u1", reason="low balance"))
    said = ("razorpayx", "pout_1", "pending", "w1", 125_00, "INR", "u1", "low balance", CLICKED_AT)
    assert await select(database, ROWS) == [said]
    assert await select(database, ROWS.replace("payouts", "payout_reports")) == [said]
    assert await select(database, "select id::text, correlation_id from payout_reports") == [
        (message_id(1), "story-1")
    ]


async def test_a_payout_moves_forward_only_whatever_the_times_say(database: Database) -> None:
    seen = []
    states: list[PayoutState] = ["processing", "queued", "processed", "rejected", "reversed"]
    for number, state in enumerate([*states, "processed"], 1):
        await handle(database, payout(state=state, occurred_at=CLICKED_AT + number), number)
        seen += await select(database, STATES)
    assert [state for (state,) in seen] == [
        *("processing", "processing", "processed", "processed", "reversed", "reversed")
    ]


async def test_of_states_of_one_rank_the_latest_counts(database: Database) -> None:
    await handle(database, payout(state="queued", occurred_at=CLICKED_AT + 1), 1)
    await handle(database, payout(state="scheduled", occurred_at=CLICKED_AT), 2)
    assert await select(database, STATES) == [("queued",)]
    await handle(database, payout(state="pending", occurred_at=CLICKED_AT + 2), 3)
    assert await select(database, STATES) == [("pending",)]


async def test_a_message_has_its_effect_once(database: Database) -> None:
    await handle(database, payout())
    with pytest.raises(AttemptOver):
        await handle(database, payout())
    assert await select(database, "select count(*) from payout_reports") == [(1,)]


async def test_reports_at_the_same_time_wait_for_each_other(database: Database) -> None:
    await handle(database, payout(), 1)
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        await connection.execute("select from payouts for no key update")
        tasks.start_soon(handle, database, payout(state="processing", utr="u1"), 3)
        await until_rows(database, LOCK_WAITS, (1,))
        await have_together(connection, told(payout(state="processed"), 2))
    assert await select(database, "select state, utr from payouts") == [("processed", "u1")]


@pytest.mark.parametrize("change", ["update {} set utr = 'x'", "delete from {}"])
async def test_history_is_not_rewritten(database: Database, change: str) -> None:
    await handle(database, payout())
    with pytest.raises(psycopg.errors.RestrictViolation, match="payout_reports is append only"):
        await run(database, change.format("payout_reports").encode())


REPORTS = st.builds(
    payout,
    state=st.sampled_from(get_args(PayoutState)),
    reference_id=st.sampled_from([None, "w1", "w2"]),
    amount_minor=st.integers(0, 2),
    currency=st.sampled_from(["INR", "USD"]),
    utr=st.sampled_from([None, "u1", "u2"]),
    reason=st.sampled_from(["", "bank", "limit"]),
    # Few, so that several are of one moment and their ids decide.
    occurred_at=st.integers(0, 3).map(lambda second: CLICKED_AT + second),
)


def rank(report: PayoutReported) -> int:
    return next(number for number, states in enumerate(RANKS) if report.state in states)


def said_together(reports: Sequence[PayoutReported]) -> tuple[object, ...]:
    """What a payout is by all its reports, which are in the order of their ids."""
    in_order = sorted(
        enumerate(reports), key=lambda each: (rank(each[1]), each[1].occurred_at, each[0])
    )
    furthest = [report for _, report in reversed(in_order)]
    top = furthest[0]
    references = [report.reference_id for report in furthest if report.reference_id is not None]
    utrs = [report.utr for report in furthest if report.utr is not None]
    return (
        *("razorpayx", "pout_1", top.state, next(iter(references), None), top.amount_minor),
        *(top.currency, next(iter(utrs), None), top.reason, top.occurred_at),
    )


async def test_any_order_of_any_reports_ends_the_same(database: Database) -> None:
    async def check(reports: list[PayoutReported], order: list[int]) -> None:
        await run(database, EMPTY_ALL)
        for place in order:
            await handle_anew(database, reports[place], place + 1)
        assert await select(database, ROWS) == [said_together(reports)]
        assert await select(database, "select count(*) from payout_reports") == [(len(reports),)]

    @given(reports=st.lists(REPORTS, min_size=1, max_size=5), data=st.data())
    @settings(max_examples=40, deadline=None)
    def holds(reports: list[PayoutReported], data: st.DataObject) -> None:
        places = range(len(reports))
        doubled = data.draw(st.lists(st.sampled_from(places), max_size=2))
        order = data.draw(st.permutations([*places, *doubled]))
        anyio.from_thread.run(check, reports, order)

    await anyio.to_thread.run_sync(holds)


async def test_batches_end_as_their_reports_do_one_by_one(database: Database) -> None:
    @given(
        reports=st.lists(
            st.builds(
                lambda report, payout_id: msgspec.structs.replace(report, payout_id=payout_id),
                REPORTS,
                st.sampled_from(["pout_1", "pout_2"]),
            ),
            min_size=2,
            max_size=6,
        ),
        data=st.data(),
    )
    @settings(max_examples=25, deadline=None)
    def holds(reports: list[PayoutReported], data: st.DataObject) -> None:
        batches = data.draw(arrivals(len(reports)))
        anyio.from_thread.run(check_batches, database, reports, batches)

    await anyio.to_thread.run_sync(holds)


async def test_a_batch_that_comes_again_changes_nothing(database: Database) -> None:
    batch = [told(payout(), 1), told(payout(payout_id="pout_2"), 2), told(payout(utr="u1"), 3)]
    await handle_together(database, *batch)
    kept = await select(database, ALL_ROWS)
    await handle_together(database, *reversed(batch))
    assert await select(database, ALL_ROWS) == kept
    assert len(kept) == 2 + 3


async def test_batches_that_meet_wait_for_each_other(database: Database) -> None:
    await let_batches_meet(
        database,
        payout(payout_id="pout_1"),
        payout(payout_id="pout_2"),
        lock_first=b"select from payouts where payout_id = 'pout_1' for update",
    )
    assert await select(
        database, "select payout_id, count(*) from payout_reports group by 1 order by 1"
    ) == [("pout_1", 3), ("pout_2", 3)]
