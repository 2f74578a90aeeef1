"""All that is told of an order, in any order, doubled and at once: it ends the same."""

import itertools
from collections.abc import Sequence

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.kernel.handlers import DeliveryError
from couponflow.messages import CheckoutRequested, Message, PaymentReported, RefundReported
from tests.checkout.desk import ORDER, PROVIDER, Desk
from tests.checkout.test_payments_together import take_together
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

NUMBERS_TOGETHER = 1_000_000
"""Apart from those that the desk gives."""

moments = st.sampled_from([CLICKED_AT, CLICKED_AT + 1])
amounts = st.sampled_from([400, 600, 1000])
currencies = st.sampled_from(["INR", "INR", "INR", "USD"])
payments = st.builds(
    PaymentReported,
    provider=st.just(PROVIDER),
    payment_id=st.sampled_from(["pay_1", "pay_2"]),
    order_number=st.sampled_from([None, "N-1"]),
    provider_order_id=st.sampled_from(["order_1", "order_2"]),
    state=st.sampled_from(["created", "failed", "authorized", "captured", "captured"]),
    amount_minor=amounts,
    currency=currencies,
    method=st.sampled_from(["upi", "card"]),
    reason=st.sampled_from(["", "no funds"]),
    occurred_at=moments,
)
refunds = st.sampled_from([("rfnd_1", "pay_1"), ("rfnd_2", "pay_1"), ("rfnd_3", "pay_2")]).flatmap(
    lambda ids: st.builds(
        RefundReported,
        provider=st.just(PROVIDER),
        refund_id=st.just(ids[0]),
        payment_id=st.just(ids[1]),
        state=st.sampled_from(["pending", "processed", "processed", "failed"]),
        amount_minor=amounts,
        currency=currencies,
        occurred_at=moments,
    )
)
checkouts = st.builds(
    CheckoutRequested,
    number=st.just("N-1"),
    amount_minor=amounts,
    currency=currencies,
    requested_at=moments,
)


OTHER = msgspec.structs.replace(ORDER, number="N-2", provider_order_id="order_3")
# Of another order, whose payments meet the first one's in a transaction.
other_payments = st.builds(
    lambda payment, number, called: msgspec.structs.replace(
        payment, payment_id="pay_3", order_number=number, provider_order_id=called
    ),
    payments,
    st.sampled_from([None, "N-2"]),
    st.sampled_from([None, "order_3", "order_4"]),
)


@st.composite
def stories(
    draw: st.DrawFn, sizes: Sequence[int], others_max: int = 0
) -> tuple[list[Message], list[list[Message]]]:
    """What is told, and how it arrives: shuffled, some twice, so many messages at a time.

    So many payments at most are of another order.
    """
    told: list[Message] = [
        *draw(st.lists(checkouts, max_size=1)),
        *draw(st.sampled_from([[ORDER], []])),
        *draw(st.lists(payments, min_size=1, max_size=5)),
        *draw(st.lists(refunds, max_size=3)),
        *([OTHER] if others_max else []),
        *draw(st.lists(other_payments, min_size=min(1, others_max), max_size=others_max)),
    ]
    doubled = [*told, *draw(st.lists(st.sampled_from(told), max_size=3))]
    arriving = draw(st.permutations(doubled))
    if draw(st.booleans()):
        # Where payments wait for their orders, few are there at once that can be taken.
        arriving = sorted(arriving, key=lambda message: isinstance(message, PaymentReported))
    groups: list[list[Message]] = []
    while arriving:
        size = draw(st.sampled_from(sizes))
        groups.append(arriving[:size])
        arriving = arriving[size:]
    return told, groups


async def settle(
    desk: Desk, groups: Sequence[Sequence[Message]], *, together: bool = False
) -> None:
    """Take the groups, one after the other, and what has to wait again, while that helps.

    The messages of a group are attempted at once; `together`, its payments in one transaction at
    first, and only what that leaves out alone.
    """
    waiting: list[Message] = []

    async def attempt(message: Message) -> None:
        try:
            await desk.take(message)
        except DeliveryError as error:
            if error.permanent:
                raise
            waiting.append(message)

    async def attempt_together(batch: Sequence[PaymentReported]) -> None:
        reports = {next(numbers): message for message in batch}
        done = await take_together(desk.database, reports)
        for number, message in reports.items():
            if number not in done:
                await attempt(message)

    numbers = itertools.count(NUMBERS_TOGETHER)
    while groups:
        for group in groups:
            batch = [each for each in group if together and isinstance(each, PaymentReported)]
            async with anyio.create_task_group() as tasks:
                if batch:
                    tasks.start_soon(attempt_together, batch)
                for message in group:
                    if not (together and isinstance(message, PaymentReported)):
                        tasks.start_soon(attempt, message)
        again = [[*waiting]] if together else [[message] for message in waiting]
        groups = again if len(waiting) < sum(map(len, groups)) else []
        waiting.clear()


async def check(
    desk: Desk, told: Sequence[Message], arriving: Sequence[Sequence[Message]], *, together: bool
) -> None:
    """Have what arrives end as what is told does, one by one and in its order."""
    await desk.clear()
    await settle(desk, [[message] for message in told])
    in_order = await desk.everything()
    await desk.clear()
    await settle(desk, arriving, together=together)
    shuffled = await desk.everything()
    del in_order["done"], shuffled["done"]
    assert shuffled == in_order
    assert await desk.offenders() == {}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stories(sizes=[1, 2]))
async def test_whatever_the_order_of_arrival_the_rows_end_the_same(
    desk: Desk, story: tuple[list[Message], list[list[Message]]]
) -> None:
    await check(desk, *story, together=False)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stories(sizes=[3, 6, 9], others_max=3))
async def test_payments_in_one_transaction_end_the_same(
    desk: Desk, story: tuple[list[Message], list[list[Message]]]
) -> None:
    await check(desk, *story, together=True)
