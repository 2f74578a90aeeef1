"""Several reports of payments in one transaction: they end as they do one by one."""

import itertools
from collections.abc import Mapping, Sequence

import anyio
import msgspec
import pytest

from couponflow.checkout.payments import take_payment, take_payments
from couponflow.kernel.attempt import Attempt
from couponflow.kernel.database import Database
from couponflow.kernel.handlers import DeliveryError, as_told
from couponflow.messages import Message, PaymentReported
from tests.checkout.desk import ORDER, ORDERS, PAYMENTS, PROVIDER, Desk, payment, refund
from tests.kernel.outboxes import envelope, until_rows

pytestmark = pytest.mark.once

Reports = Mapping[int, PaymentReported]
"""Each with the number that makes the id of its message."""

FIRST_NUMBER = 101
ROWS = (
    "select to_jsonb(o) - 'updated_at' from orders o"
    " union all select to_jsonb(p) - 'updated_at' from payments p"
    " union all select to_jsonb(n) from provider_orders n order by 1"
)
LOCK_WAITS = (
    "select count(*)::int from pg_stat_activity"
    " where datname = current_database() and wait_event_type = 'Lock'"
)
OTHER = msgspec.structs.replace(ORDER, number="N-2", provider_order_id="order_2")


def report(
    number: int = 1, order: str | None = None, called: str | None = None, **changes: str | float
) -> PaymentReported:
    """A report of a captured payment: of which order by number, and what the provider calls it."""
    names = {"order_number": order, "provider_order_id": called}
    return msgspec.structs.replace(payment("captured", number), **names, **changes)


def numbered(reports: Sequence[PaymentReported]) -> Reports:
    return dict(enumerate(reports, FIRST_NUMBER))


def attempt(database: Database, number: int, message: PaymentReported) -> Attempt:
    return Attempt(envelope(message, number=number), database)


async def take_each(database: Database, reports: Reports) -> dict[int, tuple[str, bool]]:
    """Attempt one after the other, and what has to wait again, while that helps.

    What was said of those that are refused to the end, and whether for good.
    """
    refused: dict[int, tuple[str, bool]] = {}
    waiting: Reports = {}
    for number, message in reports.items():
        try:
            await take_payment(message, attempt(database, number, message))
        except DeliveryError as error:
            refused[number] = str(error), error.permanent
            if not error.permanent:
                waiting = {**waiting, number: message}
    if waiting and len(waiting) < len(reports):
        settled = {number: each for number, each in refused.items() if number not in waiting}
        return settled | await take_each(database, waiting)
    return refused


async def take_together(database: Database, reports: Reports) -> set[int]:
    """Have the effects of several at once; the numbers of those that had theirs."""
    told = {
        number: as_told(message, attempt(database, number, message))
        for number, message in reports.items()
    }
    async with database.transaction() as connection:
        done = await take_payments(list(told.values()), connection)
    assert len(set(done)) == len(done)
    assert set(done) <= {each.message_id for each in told.values()}
    return {number for number, each in told.items() if each.message_id in done}


async def begin(database: Database, before: Sequence[Message]) -> Desk:
    desk = Desk(database)
    await desk.clear()
    await desk.take(*before)
    return desk


async def check(
    database: Database, before: Sequence[Message], batch: Sequence[PaymentReported]
) -> dict[int, bool]:
    """Have a batch end as its reports do one by one.

    The places of what it leaves out, with whether that is refused for good.
    """
    reports = numbered(batch)
    desk = await begin(database, before)
    refused = await take_each(database, reports)
    one_by_one = await desk.select(ROWS)

    desk = await begin(database, before)
    done = await take_together(database, reports)
    at_once = await desk.select(ROWS)
    left = {number: each for number, each in reports.items() if number not in done}
    assert await take_each(database, left) == refused
    assert await desk.select(ROWS) == one_by_one
    assert await desk.offenders() == {}

    # What is left out leaves nothing: those that were done would be alike without it.
    desk = await begin(database, before)
    assert await take_each(database, {number: reports[number] for number in sorted(done)}) == {}
    assert await desk.select(ROWS) == at_once
    return {number - FIRST_NUMBER: refused.get(number, ("", False))[1] for number in left}


CASES: dict[str, tuple[list[Message], list[PaymentReported], dict[int, bool]]] = {
    "all are of known orders": (
        [ORDER, OTHER],
        [report(1, "N-1"), report(2, called="order_2"), report(3, "N-1", "order_1")],
        {},
    ),
    "new names are kept": (
        [ORDER, OTHER],
        [report(1, "N-1", "order_8"), report(2, "N-2", "order_9")],
        {},
    ),
    "one is known by a name that another tells": (
        [ORDER],
        [report(1, called="order_9"), report(2, "N-1", "order_9")],
        {0: False},
    ),
    "a payment is of another order already": (
        [ORDER, OTHER, payment("authorized")],
        [report(1, "N-2", "order_9"), report(2, "N-2")],
        {0: True},
    ),
    "nothing but such a payment": (
        [ORDER, OTHER, payment("authorized")],
        [report(1, "N-2", "order_9")],
        {0: True},
    ),
    "one name is of two orders": (
        [ORDER, OTHER],
        [report(1, "N-1", "order_9"), report(2, "N-2", "order_9"), report(3, "N-2")],
        {0: False, 1: True},
    ),
    "a payment moves": (
        [ORDER, OTHER],
        [report(1, "N-1"), report(1, "N-2", "order_9")],
        {1: True},
    ),
    "a payment moves back": (
        [ORDER, OTHER],
        [report(1, "N-2", "order_9"), report(1, "N-1"), report(1, called="order_2")],
        {1: True},
    ),
    "number and name are of two orders": (
        [ORDER, OTHER],
        [report(1, "N-1", "order_2"), report(2, "N-2")],
        {0: True},
    ),
    "orders are not known": (
        [ORDER],
        [report(1, "N-9"), report(2, "N-1"), report(3, called="order_9"), report(4)],
        {0: False, 2: False, 3: False},
    ),
    "no order is known": ([], [report(1, "N-1"), report(2, "N-2")], {0: False, 1: False}),
    "which refunds count changes": (
        [ORDER, payment("authorized", currency="USD"), refund("processed", amount_minor=300)],
        [report(1, "N-1"), report(2, "N-1", state="authorized")],
        {},
    ),
}


@pytest.mark.parametrize(("before", "batch", "left"), CASES.values(), ids=CASES.keys())
async def test_a_batch_ends_as_its_reports_do_one_by_one(
    database: Database,
    before: list[Message],
    batch: list[PaymentReported],
    left: dict[int, bool],
) -> None:
    assert await check(database, before, batch) == left


async def test_no_name_is_kept_of_what_is_left_out(desk: Desk) -> None:
    await desk.take(ORDER, OTHER, payment("authorized"))
    before = await desk.select(ROWS)
    moved = report(1, "N-2", "order_8")
    disputed = [report(2, "N-1", "order_9"), report(3, "N-2", "order_9")]
    assert await take_together(desk.database, numbered([moved, *disputed])) == set()
    assert await desk.select(ROWS) == before
    assert await take_each(desk.database, numbered([moved, *disputed])) == {
        101: (f"payment pay_1 of {PROVIDER} is of another order", True),
        103: (f"order N-2 and {PROVIDER}'s order_9 are two orders", True),
    }
    names = "select provider_order_id, number from provider_orders, orders where id = order_id"
    assert set(await desk.select(names)) == {
        ("order_1", "N-1"),
        ("order_2", "N-2"),
        ("order_9", "N-1"),
    }


async def test_reports_of_one_payment_end_the_same_in_any_order(database: Database) -> None:
    reports = [
        report(1, "N-1", state="authorized", occurred_at=ORDER.created_at + 9),
        report(1, "N-1", amount_minor=700),
        report(1, called="order_1", amount_minor=1200),
        report(2, "N-2"),
    ]
    for order in itertools.permutations(reports[:3]):
        batch = [order[0], reports[3], *order[1:]]
        assert await check(database, [ORDER, OTHER], batch) == {}
        assert await Desk(database).select(PAYMENTS) == [
            ("pay_1", "captured", 1200),
            ("pay_2", "captured", 1000),
        ]


async def test_a_batch_that_comes_again_changes_nothing(desk: Desk) -> None:
    await desk.take(ORDER, OTHER)
    batch = numbered(
        [
            report(1, "N-1", "order_8", state="authorized"),
            report(2, "N-2"),
            report(1, called="order_1", amount_minor=400),
        ]
    )
    assert await take_together(desk.database, batch) == set(batch)
    kept = await desk.select(ROWS)
    again = dict(reversed([*batch.items()]))
    assert await take_together(desk.database, again) == set(batch)
    assert await desk.select(ROWS) == kept
    assert await desk.select(ORDERS) == [
        ("N-1", "attempted", 1000, "INR"),
        ("N-2", "paid", 1000, "INR"),
    ]


async def test_batches_that_meet_wait_for_each_other(desk: Desk) -> None:
    await desk.take(ORDER, OTHER)
    database = desk.database
    halves = [
        *(report(1, "N-1", amount_minor=500), report(2, "N-2", amount_minor=500)),
        *(report(3, called="order_2", amount_minor=500), report(4, "N-1", amount_minor=500)),
    ]
    reports = numbered(halves)
    one = {number: reports[number] for number in (101, 102)}
    other = {number: reports[number] for number in (103, 104)}
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        await connection.execute("select from orders where number = 'N-1' for no key update")
        tasks.start_soon(take_together, database, one)
        await until_rows(database, LOCK_WAITS, (1,))
        # In the order of the batch it would wait for N-1 with N-2 locked, for which those before it
        # wait once they have N-1.
        tasks.start_soon(take_together, database, other)
        await until_rows(database, LOCK_WAITS, (2,))
    # Each order is paid by the two batches together.
    assert await desk.select(ORDERS) == [("N-1", "paid", 1000, "INR"), ("N-2", "paid", 1000, "INR")]
    assert await desk.offenders() == {}
