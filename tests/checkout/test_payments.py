import itertools

import anyio
import msgspec
import pytest

from couponflow.kernel.attempt import AttemptOver
from couponflow.kernel.handlers import MessageUnfit
from couponflow.messages import Message, PaymentReported
from tests.checkout.desk import ORDER, ORDERS, PAYMENTS, PROVIDER, REFUNDS, Desk, payment, refund
from tests.kernel.outboxes import message_id, until_rows
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

STATES = "select o.state, p.state from orders o join payments p on p.order_id = o.id"


async def test_a_payment_goes_forward_and_its_order_with_it(desk: Desk) -> None:
    await desk.take(ORDER)
    seen = []
    for state in ("created", "failed", "authorized", "captured"):
        await desk.take(payment(state))
        seen += await desk.select(STATES)
    assert seen == [
        ("attempted", "created"),
        ("attempted", "failed"),
        ("attempted", "authorized"),
        ("paid", "captured"),
    ]


async def test_a_late_report_changes_nothing_but_the_moments(desk: Desk) -> None:
    await desk.take(ORDER, payment("captured"))
    before = await desk.select(STATES)
    await desk.take(
        payment("authorized", amount_minor=1, after_seconds=9),
        payment("failed", reason="no answer from the bank", after_seconds=-9),
    )
    assert await desk.select(STATES) == before
    assert await desk.select(
        "select id::text, amount_minor, method, reason,"
        " extract(epoch from state_occurred_at)::float,"
        " extract(epoch from first_occurred_at)::float,"
        " extract(epoch from last_occurred_at)::float from payments"
    ) == [(message_id(2), 1000, "upi", "", CLICKED_AT, CLICKED_AT - 9, CLICKED_AT + 9)]


async def test_a_payment_that_failed_says_why_until_it_succeeds(desk: Desk) -> None:
    await desk.take(ORDER, payment("failed", reason="no funds"))
    assert await desk.select("select reason from payments") == [("no funds",)]
    await desk.take(payment("captured"))
    assert await desk.select("select reason from payments") == [("",)]


async def test_reports_of_one_state_that_disagree_end_the_same(desk: Desk) -> None:
    reports = [
        payment("captured", amount_minor=700),
        payment("captured", amount_minor=800),
        payment("captured", amount_minor=900, after_seconds=-1),
    ]
    for order in itertools.permutations(reports):
        await desk.clear()
        await desk.take(ORDER, *order)
        assert await desk.select(PAYMENTS) == [("pay_1", "captured", 800)]


MONEY: list[tuple[list[Message], str]] = [
    ([payment("captured", amount_minor=999)], "attempted"),
    ([payment("captured", currency="USD")], "attempted"),
    ([payment("authorized")], "attempted"),
    ([payment("captured", amount_minor=400), payment("captured", 2, amount_minor=600)], "paid"),
    ([payment("captured"), refund("pending")], "paid"),
    ([payment("captured"), refund("processed", currency="USD")], "paid"),
    ([payment("captured"), refund("processed", amount_minor=999)], "partially_refunded"),
    ([payment("captured"), refund("processed")], "refunded"),
    ([payment("captured"), refund("processed", amount_minor=1001)], "refunded"),
    ([payment("captured"), refund("processed"), refund("failed")], "paid"),
    ([payment("captured"), payment("captured", 2), refund("processed")], "paid"),
    (
        [
            *(payment("captured"), payment("captured", 2), refund("processed")),
            refund("processed", 2, payment_number=2, amount_minor=1),
        ],
        "partially_refunded",
    ),
    ([payment("authorized"), refund("processed")], "attempted"),
    ([payment("authorized"), refund("processed"), payment("captured")], "refunded"),
]


async def test_the_state_of_an_order_follows_from_its_money(desk: Desk) -> None:
    for reports, state in MONEY:
        await desk.clear()
        await desk.take(ORDER, *reports)
        assert await desk.select(ORDERS) == [("N-1", state, 1000, "INR")], reports
        assert await desk.offenders() == {}


async def test_an_order_of_nothing_is_paid_by_a_payment_of_nothing(desk: Desk) -> None:
    free = msgspec.structs.replace(ORDER, amount_minor=0)
    await desk.take(free, payment("failed", amount_minor=0))
    assert await desk.select(ORDERS) == [("N-1", "attempted", 0, "INR")]
    await desk.take(payment("captured", amount_minor=0))
    assert await desk.select(ORDERS) == [("N-1", "paid", 0, "INR")]
    assert await desk.offenders() == {}


async def test_refunds_add_up_on_their_payment(desk: Desk) -> None:
    await desk.take(ORDER, payment("captured"), refund("processed", amount_minor=300))
    payments = "select state, amount_refunded_minor from payments"
    assert await desk.select(payments) == [("partially_refunded", 300)]
    await desk.take(refund("processed", 2, amount_minor=700), refund("pending", amount_minor=300))
    assert await desk.select(payments) == [("refunded", 1000)]
    await desk.take(refund("failed", 2, amount_minor=700))
    assert await desk.select(payments) == [("partially_refunded", 300)]
    assert await desk.select(REFUNDS) == [("rfnd_1", "processed", 300), ("rfnd_2", "failed", 700)]


async def test_which_refunds_count_is_seen_anew_when_a_payment_changes_its_currency(
    desk: Desk,
) -> None:
    await desk.take(ORDER, payment("authorized", currency="USD"), refund("processed"))
    assert await desk.select("select amount_refunded_minor from payments") == [(0,)]
    await desk.take(payment("captured"))
    assert await desk.select(PAYMENTS) == [("pay_1", "refunded", 1000)]


NUMBERED = PaymentReported(
    provider=PROVIDER,
    payment_id="pay_1",
    order_number="N-9",
    state="captured",
    amount_minor=1,
    currency="INR",
    occurred_at=CLICKED_AT,
)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (NUMBERED, "order N-9 is not known yet"),
        (payment("captured"), "order razorpay's order_1 is not known yet"),
        (refund("processed"), "payment pay_1 of razorpay is not known yet"),
    ],
)
async def test_what_concerns_something_unknown_waits_without_effect(
    desk: Desk, message: Message, reason: str
) -> None:
    nothing = await desk.everything()
    with pytest.raises(MessageUnfit, match=f"^{reason}$") as waits:
        await desk.take(message)
    assert not waits.value.permanent
    assert await desk.everything() == nothing


async def test_a_payment_that_names_no_order_waits_for_an_event_that_does(desk: Desk) -> None:
    nameless = msgspec.structs.replace(payment("captured"), provider_order_id=None)
    nothing = await desk.everything()
    with pytest.raises(MessageUnfit, match="names no order") as waits:
        await desk.take(nameless)
    assert not waits.value.permanent
    assert await desk.everything() == nothing
    await desk.take(ORDER, payment("authorized"), nameless)
    assert await desk.select(PAYMENTS) == [("pay_1", "captured", 1000)]
    assert await desk.select(ORDERS) == [("N-1", "paid", 1000, "INR")]


async def test_a_payment_or_refund_that_moves_elsewhere_is_refused_for_good(desk: Desk) -> None:
    other = msgspec.structs.replace(ORDER, number="N-2", provider_order_id="order_2")
    await desk.take(ORDER, other, payment("captured"), payment("captured", 2), refund("pending"))
    before = await desk.everything()
    for message in (
        msgspec.structs.replace(payment("captured"), provider_order_id="order_2"),
        refund("processed", payment_number=2),
    ):
        with pytest.raises(MessageUnfit, match="is of another") as refused:
            await desk.take(message)
        assert refused.value.permanent
    assert await desk.everything() == before


async def test_a_message_has_its_effect_once(desk: Desk) -> None:
    await desk.take(ORDER)
    again = Desk(desk.database)
    with pytest.raises(AttemptOver):
        await again.take(payment("captured"))
    assert await desk.select(PAYMENTS) == []


HALVES = (payment("captured", amount_minor=500), payment("captured", 2, amount_minor=500))
REFUNDED_HALVES = (
    refund("processed", amount_minor=500),
    refund("processed", 2, amount_minor=500),
)


@pytest.mark.parametrize(
    ("before", "at_once", "state"),
    [((), HALVES, "paid"), ((payment("captured"),), REFUNDED_HALVES, "refunded")],
)
async def test_reports_of_one_order_wait_for_each_other(
    desk: Desk, before: tuple[Message, ...], at_once: tuple[Message, ...], state: str
) -> None:
    await desk.take(ORDER, *before)
    async with anyio.create_task_group() as tasks, desk.database.transaction() as connection:
        await connection.execute("select from orders for no key update")
        for message in at_once:
            tasks.start_soon(desk.take, message)
        waiting = "select count(*) from pg_locks where not granted"
        await until_rows(desk.database, waiting, (len(at_once),))
    assert await desk.select(ORDERS) == [("N-1", state, 1000, "INR")]
    assert await desk.offenders() == {}
