from collections.abc import Iterable, Sequence
from typing import TypeVar, get_args

import anyio
import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.kernel.attempt import AttemptOver
from couponflow.kernel.database import Database
from couponflow.messages import TransactionReported, TransactionStatus
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
    run,
    told,
    transaction,
)
from tests.kernel.outboxes import message_id, select, until_rows
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

T = TypeVar("T")

ROWS = (
    "select network, account, native_id, click_ref, status, status_native, kind, commission::text,"
    " sale_amount::text, currency, program_id, order_id, extract(epoch from clicked_at)::float8,"
    " extract(epoch from occurred_at)::float8, extract(epoch from reported_at)::float8,"
    " extract(epoch from first_reported_at)::float8 from affiliate_transactions"
)
FIRST = transaction(
    click_ref="01920000-0000-7000-9000-000000000001",
    kind="lead",
    commission="12.345678",
    sale_amount="-999.50",
    currency="INR",
    program_id="p1",
    order_id="o1",
    clicked_at=CLICKED_AT - 60.5,
    occurred_at=CLICKED_AT - 30.25,
)


async def test_a_first_report_makes_a_transaction_and_its_history(database: Database) -> None:
    await handle(database, FIRST)
    said = (
        *("cj", "a1", "T-1", FIRST.click_ref, "pending", "new", "lead", "12.345678", "-999.50"),
        *("INR", "p1", "o1", CLICKED_AT - 60.5, CLICKED_AT - 30.25, CLICKED_AT),
    )
    assert await select(database, ROWS) == [(*said, CLICKED_AT)]
    assert await select(
        database,
        ROWS.replace("transactions", "transaction_reports").replace(
            "first_reported_at", "reported_at"
        ),
    ) == [(*said, CLICKED_AT)]
    assert await select(
        database,
        "select t.id::text, r.id::text, t.external_click_id, r.correlation_id"
        " from affiliate_transactions t, affiliate_transaction_reports r",
    ) == [(message_id(1), message_id(1), None, "story-1")]


async def test_what_a_later_report_leaves_out_is_as_it_was_said(database: Database) -> None:
    later = transaction(
        status="confirmed", status_native="ok", commission="0", reported_at=CLICKED_AT + 1
    )
    await handle(database, FIRST, 1)
    await handle(database, later, 2)
    assert await select(
        database,
        "select status, status_native, kind, commission::text, sale_amount::text, currency,"
        " order_id from affiliate_transactions",
    ) == [("confirmed", "ok", "sale", "0", "-999.50", "INR", "o1")]
    assert await select(
        database, "select status, order_id from affiliate_transaction_reports order by id"
    ) == [("pending", "o1"), ("confirmed", None)]


async def test_a_status_that_is_not_understood_leaves_the_known_one(database: Database) -> None:
    odd = transaction(
        status="unknown", status_native="??", order_id="o2", reported_at=CLICKED_AT + 1
    )
    await handle(database, odd, 1)
    query = "select status, status_native, order_id from affiliate_transactions"
    assert await select(database, query) == [("unknown", "??", "o2")]
    await handle(database, FIRST, 2)
    assert await select(database, query) == [("pending", "new", "o2")]


async def test_an_amount_is_not_shown_in_a_currency_it_was_not_told_in(
    database: Database,
) -> None:
    dollars = transaction(sale_amount="20", currency="USD", reported_at=CLICKED_AT + 1)
    await handle(database, FIRST, 1)
    await handle(database, dollars, 2)
    assert await select(
        database, "select commission, sale_amount::text, currency from affiliate_transactions"
    ) == [(None, "20", "USD")]


async def test_networks_and_accounts_have_transactions_of_their_own(database: Database) -> None:
    for number, changes in enumerate([{}, {"account": ""}, {"network": "admitad"}], 1):
        await handle(database, transaction(**changes), number)
    assert await select(
        database, "select network, account from affiliate_transactions order by 1, 2"
    ) == [("admitad", "a1"), ("cj", ""), ("cj", "a1")]


async def test_a_message_has_its_effect_once(database: Database) -> None:
    await handle(database, FIRST)
    with pytest.raises(AttemptOver):
        await handle(database, FIRST)
    assert await select(database, "select count(*) from affiliate_transaction_reports") == [(1,)]


async def test_reports_at_the_same_time_wait_for_each_other(database: Database) -> None:
    await handle(database, FIRST, 1)
    later = transaction(status="paid", reported_at=CLICKED_AT + 2)
    between = transaction(status="rejected", program_id="p2", reported_at=CLICKED_AT + 1)
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        await connection.execute("select from affiliate_transactions for no key update")
        tasks.start_soon(handle, database, between, 3)
        await until_rows(database, LOCK_WAITS, (1,))
        await have_together(connection, told(later, 2))
    assert await select(database, "select status, program_id from affiliate_transactions") == [
        ("paid", "p2")
    ]


@pytest.mark.parametrize("change", ["update {} set order_id = 'x'", "delete from {}"])
async def test_history_is_not_rewritten(database: Database, change: str) -> None:
    await handle(database, FIRST)
    with pytest.raises(psycopg.errors.RestrictViolation, match="reports is append only"):
        await run(database, change.format("affiliate_transaction_reports").encode())


@pytest.mark.parametrize("amount", ["'NaN'", "'Infinity'", "'-Infinity'", "1e15"])
async def test_an_amount_is_a_number_within_bounds(database: Database, amount: str) -> None:
    await handle(database, FIRST)
    with pytest.raises(psycopg.errors.CheckViolation):
        await run(database, f"update affiliate_transactions set commission = {amount}".encode())


def maybe(*values: T) -> st.SearchStrategy[T | None]:
    return st.sampled_from([None, *values])


MOMENTS = st.integers(0, 3).map(lambda second: CLICKED_AT + second)
REPORTS = st.builds(
    transaction,
    click_ref=maybe("c1", "c2"),
    status=st.sampled_from(get_args(TransactionStatus)),
    status_native=st.sampled_from(["", "one", "two"]),
    kind=st.sampled_from(["sale", "lead", "bonus", "other"]),
    commission=maybe("0", "1.50", "-2.000001"),
    sale_amount=maybe("0", "100", "99.99"),
    currency=maybe("INR", "USD"),
    program_id=maybe("p1", "p2"),
    order_id=maybe("o1", "o2"),
    clicked_at=st.none() | MOMENTS,
    occurred_at=st.none() | MOMENTS,
    # Few, so that several are of one moment and their ids decide.
    reported_at=MOMENTS,
)


def last(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def said_together(reports: Sequence[TransactionReported]) -> tuple[object, ...]:
    """What a transaction is by all its reports, which are in the order of their ids."""
    in_order = sorted(enumerate(reports), key=lambda each: (each[1].reported_at, each[0]))
    newest = [report for _, report in reversed(in_order)]
    known = next((report for report in newest if report.status != "unknown"), newest[0])
    currency = last(report.currency for report in newest)
    counted = [report for report in newest if report.currency in (None, currency)]
    return (
        *("cj", "a1", "T-1", last(report.click_ref for report in newest)),
        *(known.status, known.status_native, newest[0].kind),
        *(last(each.commission for each in counted), last(each.sale_amount for each in counted)),
        *(currency, last(report.program_id for report in newest)),
        last(report.order_id for report in newest),
        last(report.clicked_at for report in newest),
        last(report.occurred_at for report in newest),
        *(newest[0].reported_at, newest[-1].reported_at),
    )


async def test_any_order_of_any_reports_ends_the_same(database: Database) -> None:
    async def check(reports: list[TransactionReported], order: list[int]) -> None:
        await run(database, EMPTY_ALL)
        for place in order:
            await handle_anew(database, reports[place], place + 1)
        assert await select(database, ROWS) == [said_together(reports)]
        assert await select(database, "select count(*) from affiliate_transaction_reports") == [
            (len(reports),)
        ]

    @given(reports=st.lists(REPORTS, min_size=1, max_size=5), data=st.data())
    @settings(max_examples=40, deadline=None)
    def holds(reports: list[TransactionReported], data: st.DataObject) -> None:
        places = range(len(reports))
        doubled = data.draw(st.lists(st.sampled_from(places), max_size=2))
        order = data.draw(st.permutations([*places, *doubled]))
        anyio.from_thread.run(check, reports, order)

    await anyio.to_thread.run_sync(holds)


async def test_batches_end_as_their_reports_do_one_by_one(database: Database) -> None:
    @given(
        reports=st.lists(
            st.builds(
                lambda report, native_id: msgspec.structs.replace(report, native_id=native_id),
                REPORTS,
                st.sampled_from(["T-1", "T-2"]),
            ),
            min_size=2,
            max_size=6,
        ),
        data=st.data(),
    )
    @settings(max_examples=25, deadline=None)
    def holds(reports: list[TransactionReported], data: st.DataObject) -> None:
        batches = data.draw(arrivals(len(reports)))
        anyio.from_thread.run(check_batches, database, reports, batches)

    await anyio.to_thread.run_sync(holds)


async def test_a_batch_that_comes_again_changes_nothing(database: Database) -> None:
    batch = [told(FIRST, 1), told(transaction(native_id="T-2"), 2), told(FIRST, 3)]
    await handle_together(database, *batch)
    kept = await select(database, ALL_ROWS)
    await handle_together(database, *reversed(batch))
    assert await select(database, ALL_ROWS) == kept
    assert len(kept) == 2 + 3


async def test_batches_that_meet_wait_for_each_other(database: Database) -> None:
    await let_batches_meet(
        database,
        transaction(native_id="T-1"),
        transaction(native_id="T-2"),
        lock_first=b"select from affiliate_transactions where native_id = 'T-1' for update",
    )
    assert await select(
        database,
        "select native_id, count(*) from affiliate_transaction_reports group by 1 order by 1",
    ) == [("T-1", 3), ("T-2", 3)]
