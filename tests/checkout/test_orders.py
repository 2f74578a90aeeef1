import itertools

import msgspec
import pytest

from couponflow.kernel.handlers import MessageUnfit
from couponflow.messages import CheckoutRequested, OrderItem
from tests.checkout.desk import ORDER, ORDERS, PAYMENTS, PROVIDER, Desk, payment
from tests.kernel.outboxes import message_id
from tests.samples import CLICKED_AT, USER_ID

pytestmark = pytest.mark.once

ITEMS = "select line, sku, quantity, unit_price_minor from order_items order by line"
NAMES = "select provider, provider_order_id from provider_orders order by 2"
TEA = OrderItem(sku="tea", quantity=2, unit_price_minor=200)
CUP = OrderItem(sku="cup", quantity=1, unit_price_minor=500)
CHECKOUT = CheckoutRequested(
    number="N-1",
    amount_minor=900,
    currency="INR",
    items=(TEA, CUP),
    requested_at=CLICKED_AT - 5,
)
MADE = msgspec.structs.replace(ORDER, items=(CUP, TEA, CUP))


async def test_an_order_is_made_with_its_lines(desk: Desk) -> None:
    await desk.take(MADE)
    assert await desk.select(
        "select id::text, number, user_id::text, amount_minor, currency, state,"
        " extract(epoch from created_at)::float from orders"
    ) == [(message_id(1), "N-1", USER_ID, 1000, "INR", "created", CLICKED_AT)]
    assert await desk.select(ITEMS) == [
        (1, "cup", 1, 500),
        (2, "tea", 2, 200),
        (3, "cup", 1, 500),
    ]
    assert await desk.select(NAMES) == [(PROVIDER, "order_1")]


async def test_who_asked_for_an_order_and_who_made_it_may_come_in_any_order(desk: Desk) -> None:
    equal = msgspec.structs.replace(MADE, items=(TEA,))
    ends = []
    for messages in itertools.permutations([CHECKOUT, MADE, equal, payment("captured")]):
        await desk.clear()
        waiting = []
        for message in messages:
            try:
                await desk.take(message)
            except MessageUnfit:
                waiting.append(message)
        await desk.take(*waiting)
        ends.append(await desk.everything())
        assert await desk.select(ORDERS) == [("N-1", "paid", 1000, "INR")]
    assert all(end == ends[0] for end in ends)


async def test_of_two_requests_for_a_number_the_earlier_stands(desk: Desk) -> None:
    await desk.take(
        msgspec.structs.replace(CHECKOUT, amount_minor=1, items=(), requested_at=CLICKED_AT),
        CHECKOUT,
        msgspec.structs.replace(CHECKOUT, amount_minor=2, items=(), requested_at=CLICKED_AT),
    )
    assert await desk.select(ORDERS) == [("N-1", "created", 900, "INR")]
    assert [sku for _, sku, _, _ in await desk.select(ITEMS)] == ["tea", "cup"]


async def test_a_late_correction_of_the_amount_changes_whether_it_is_paid(desk: Desk) -> None:
    await desk.take(CHECKOUT)
    numbered = msgspec.structs.replace(payment("captured", amount_minor=900), order_number="N-1")
    await desk.take(numbered)
    assert await desk.select(ORDERS) == [("N-1", "paid", 900, "INR")]
    await desk.take(ORDER)
    assert await desk.select(ORDERS) == [("N-1", "attempted", 1000, "INR")]


async def test_a_name_that_came_with_a_number_finds_the_order_alone(desk: Desk) -> None:
    await desk.take(ORDER)
    other = msgspec.structs.replace(payment("created"), provider_order_id="order_2")
    with pytest.raises(MessageUnfit, match="order_2 is not known yet"):
        await desk.take(other)
    await desk.take(msgspec.structs.replace(payment("created", 2), order_number="N-1"))
    await desk.take(msgspec.structs.replace(other, order_number="N-1"))
    await desk.take(msgspec.structs.replace(payment("captured"), provider_order_id="order_2"))
    assert await desk.select(NAMES) == [(PROVIDER, "order_1"), (PROVIDER, "order_2")]
    assert await desk.select(ORDERS) == [("N-1", "paid", 1000, "INR")]


async def test_what_names_two_orders_is_refused_for_good(desk: Desk) -> None:
    await desk.take(ORDER, msgspec.structs.replace(CHECKOUT, number="N-2"))
    before = await desk.everything()
    for message in (
        msgspec.structs.replace(payment("captured"), order_number="N-2"),
        msgspec.structs.replace(ORDER, number="N-3"),
    ):
        with pytest.raises(MessageUnfit, match="are two orders") as refused:
            await desk.take(message)
        assert refused.value.permanent
    assert await desk.everything() == before
    assert await desk.select(PAYMENTS) == []
