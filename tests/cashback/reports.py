"""Reports that the tests of cashback start from, and how they are handed to its handlers."""

from collections.abc import Sequence
from itertools import chain

import anyio
import msgspec
from hypothesis import strategies as st

from couponflow.cashback.payouts import record_payout
from couponflow.cashback.role import CASHBACK_HANDLERS
from couponflow.cashback.transactions import record_transaction
from couponflow.kernel.attempt import Attempt
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.handlers import Told
from couponflow.messages import Message, PayoutReported, TransactionReported
from tests.kernel.outboxes import envelope, select, until_rows
from tests.samples import CLICKED_AT

LOCK_WAITS = (
    "select count(*)::int from pg_stat_activity"
    " where datname = current_database() and wait_event_type = 'Lock'"
)
EMPTY_ALL = (
    b"truncate affiliate_transactions, affiliate_transaction_reports, payouts, payout_reports,"
    b" processed_messages"
)
FORGET_DONE = b"delete from processed_messages"
ALL_ROWS = (
    "select to_jsonb(t) from affiliate_transactions t"
    " union all select to_jsonb(r) - 'recorded_at' from affiliate_transaction_reports r"
    " union all select to_jsonb(p) from payouts p"
    " union all select to_jsonb(r) - 'recorded_at' from payout_reports r order by 1"
)


def transaction(**changes: str | float | None) -> TransactionReported:
    made = TransactionReported(
        network="cj",
        account="a1",
        native_id="T-1",
        status="pending",
        status_native="new",
        reported_at=CLICKED_AT,
    )
    return msgspec.structs.replace(made, **changes)


def payout(**changes: str | float | None) -> PayoutReported:
    made = PayoutReported(
        provider="razorpayx",
        payout_id="pout_1",
        state="pending",
        amount_minor=125_00,
        currency="INR",
        occurred_at=CLICKED_AT,
    )
    return msgspec.structs.replace(made, **changes)


async def handle(database: Database, message: Message, number: int = 1) -> None:
    """Make an attempt at a message; `number` makes its id."""
    attempt = Attempt(envelope(message, number=number), database)
    match message:
        case TransactionReported():
            await record_transaction(message, attempt)
        case PayoutReported():
            await record_payout(message, attempt)
        case _:
            raise AssertionError(f"{message} is not for cashback")


async def handle_anew(database: Database, message: Message, number: int) -> None:
    """Make an attempt when it is forgotten what was done before."""
    await run(database, FORGET_DONE)
    await handle(database, message, number)


def told(message: Message, number: int) -> Told[Message]:
    made = envelope(message, number=number)
    return Told(
        message=message,
        message_id=made.message_id,
        correlation_id=made.correlation_id,
        published_at=made.published_at,
    )


async def have_together(connection: Connection, *batch: Told[Message]) -> None:
    """Have the effects of messages of one type as their handler has them at once."""
    (handler,) = [each for each in CASHBACK_HANDLERS if each.message_type is type(batch[0].message)]
    assert handler.run_together is not None
    assert await handler.run_together(batch, connection) == [each.message_id for each in batch]


async def handle_together(database: Database, *batch: Told[Message]) -> None:
    async with database.transaction() as connection:
        await have_together(connection, *batch)


@st.composite
def arrivals(draw: st.DrawFn, count: int) -> list[list[int]]:
    """The places of so many reports, shuffled, some twice, in two batches or one."""
    places = range(count)
    doubled = draw(st.lists(st.sampled_from(places), max_size=3))
    order = draw(st.permutations([*places, *doubled]))
    cut = draw(st.integers(1, len(order)))
    return [batch for batch in (order[:cut], order[cut:]) if batch]


async def check_batches(
    database: Database, reports: Sequence[Message], batches: Sequence[Sequence[int]]
) -> None:
    """Have the same reports come alone and in batches, and compare all that is written."""
    await run(database, EMPTY_ALL)
    for place in chain.from_iterable(batches):
        await handle_anew(database, reports[place], place + 1)
    alone = await select(database, ALL_ROWS)
    await run(database, EMPTY_ALL)
    for batch in batches:
        await handle_together(database, *(told(reports[place], place + 1) for place in batch))
    assert await select(database, ALL_ROWS) == alone


async def let_batches_meet(
    database: Database, first: Message, second: Message, *, lock_first: bytes
) -> None:
    """Tell of two known things in batches of opposite order, while another locks the first.

    Whoever locked things in the order of the batch would wait for it with the second locked, for
    which the other batch waits once it has the first.
    """
    await handle_together(database, told(first, 1), told(second, 2))
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        await connection.execute(lock_first)
        tasks.start_soon(handle_together, database, told(first, 3), told(second, 4))
        await until_rows(database, LOCK_WAITS, (1,))
        tasks.start_soon(handle_together, database, told(second, 5), told(first, 6))
        await until_rows(database, LOCK_WAITS, (2,))


async def run(database: Database, statement: bytes) -> None:
    async with database.connection() as connection:
        await connection.execute(statement)
