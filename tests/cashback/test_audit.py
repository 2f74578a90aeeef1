from pathlib import Path

import pytest

from couponflow.cashback.audit import INVARIANTS
from couponflow.kernel.audit import AuditScope, run_audit
from couponflow.kernel.database import Database
from tests.cashback.reports import handle, payout, run, transaction
from tests.kernel.outboxes import message_id
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

TRANSACTIONS, PAYOUTS, KEPT = (invariant.name for invariant in INVARIANTS)


async def offenders(database: Database) -> dict[str, list[dict[str, str]]]:
    findings = await run_audit(INVARIANTS, AuditScope(database, Path()))
    return {finding.name: finding.offenders for finding in findings}


async def report_some(database: Database) -> None:
    await handle(database, transaction(order_id="o1"), 1)
    await handle(database, transaction(status="unknown", reported_at=CLICKED_AT + 1), 2)
    await handle(database, payout(state="processed", utr="u1"), 3)
    await handle(database, payout(state="processing"), 4)


async def test_reports_that_were_handled_are_no_offence(database: Database) -> None:
    await report_some(database)
    assert await offenders(database) == {TRANSACTIONS: [], PAYOUTS: [], KEPT: []}


async def test_rows_that_say_something_else_than_their_history_are_found(
    database: Database,
) -> None:
    await report_some(database)
    await run(database, b"update affiliate_transactions set status = 'paid'")
    await run(database, b"update payouts set utr = null")
    found = await offenders(database)
    assert found[TRANSACTIONS] == [
        {
            "network": "cj",
            "account": "a1",
            "native_id": "T-1",
            "status": "paid",
            "reported_status": "pending",
        }
    ]
    assert found[PAYOUTS] == [
        {
            "provider": "razorpayx",
            "payout_id": "pout_1",
            "state": "processed",
            "reported_state": "processed",
        }
    ]


async def test_rows_without_a_history_are_found(database: Database) -> None:
    await run(
        database,
        b"insert into affiliate_transactions (id, network, account, native_id, status,"
        b" status_native, kind, reported_at, first_reported_at)"
        b" values (gen_random_uuid(), 'cj', '', 'T-9', 'paid', '', 'sale', now(), now())",
    )
    await run(
        database,
        b"insert into payouts values ('x', 'p9', 'failed', null, 1, 'INR', null, '', now())",
    )
    found = await offenders(database)
    assert [row["native_id"] for row in found[TRANSACTIONS]] == ["T-9"]
    assert [row["payout_id"] for row in found[PAYOUTS]] == ["p9"]


async def test_a_message_that_is_done_and_left_nothing_is_found(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "insert into processed_messages values (%s, 'cashback', 'done'),"
            " (%s, 'cashback', 'discarded'), (%s, 'clicks', 'done')",
            [message_id(1), message_id(2), message_id(3)],
        )
    assert (await offenders(database))[KEPT] == [{"message_id": message_id(1)}]
