import pytest

from tests.checkout.desk import ORDER, Desk, payment, refund

pytestmark = pytest.mark.once

SOUND = (payment("captured"), refund("processed", amount_minor=400))


async def test_what_checkout_wrote_is_no_offence(desk: Desk) -> None:
    await desk.take(ORDER, *SOUND)
    assert await desk.offenders() == {}


async def test_an_order_that_is_not_what_its_payments_make_it_is_found(desk: Desk) -> None:
    await desk.take(ORDER, *SOUND)
    for state in ("created", "attempted", "paid", "refunded"):
        async with desk.database.connection() as connection:
            await connection.execute("update orders set state = %s", [state])
        money = {"amount_minor": "1000", "captured": "1000", "refunded": "400"}
        offence = {"number": "N-1", "state": state, **money}
        assert await desk.offenders() == {"paid-means-captured": [offence]}


async def test_an_order_that_is_paid_without_payments_is_found(desk: Desk) -> None:
    await desk.take(ORDER)
    async with desk.database.connection() as connection:
        await connection.execute("update orders set state = 'paid'")
    assert [row["number"] for row in (await desk.offenders())["paid-means-captured"]] == ["N-1"]


async def test_a_payment_that_lost_a_refund_is_found(desk: Desk) -> None:
    await desk.take(ORDER, *SOUND)
    async with desk.database.connection() as connection:
        await connection.execute("update refunds set state = 'failed'")
    assert await desk.offenders() == {
        "refunds-within-payments": [
            {
                "provider": "razorpay",
                "provider_payment_id": "pay_1",
                "amount_refunded_minor": "400",
                "refunded_minor": "0",
            }
        ]
    }
