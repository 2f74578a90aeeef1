import itertools

import msgspec
import pytest

from couponflow.messages import ShipmentReported, ShipmentState
from tests.checkout.desk import Desk
from tests.kernel.outboxes import message_id
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

STATE = "select state from shipments"


def parcel(
    state: ShipmentState,
    after_seconds: float = 0.0,
    *,
    order_number: str | None = None,
    carrier: str = "",
) -> ShipmentReported:
    return ShipmentReported(
        provider="easypost",
        tracking_code="EZ1",
        carrier=carrier,
        order_number=order_number,
        state=state,
        state_native=state.upper(),
        detail=f"after {after_seconds:g} s",
        occurred_at=CLICKED_AT + after_seconds,
    )


async def test_a_parcel_is_kept_before_its_order_is_known(desk: Desk) -> None:
    await desk.take(parcel("in_transit", order_number="N-1", carrier="Delhivery"))
    assert await desk.select(
        "select id::text, provider, tracking_code, order_number, carrier, state, state_native,"
        " detail, extract(epoch from state_occurred_at)::float from shipments"
    ) == [
        (
            *(message_id(1), "easypost", "EZ1", "N-1", "Delhivery"),
            *("in_transit", "IN_TRANSIT", "after 0 s", CLICKED_AT),
        )
    ]


async def test_a_parcel_that_moves_is_where_the_latest_report_says(desk: Desk) -> None:
    await desk.take(parcel("out_for_delivery", 1), parcel("failure", 3), parcel("in_transit", 2))
    assert await desk.select(STATE) == [("failure",)]
    await desk.take(parcel("out_for_delivery", 4), parcel("pre_transit", 5), parcel("unknown", 6))
    assert await desk.select(STATE) == [("out_for_delivery",)]


async def test_a_parcel_that_arrived_moves_no_more_but_may_come_back(desk: Desk) -> None:
    await desk.take(parcel("delivered", 1), parcel("in_transit", 2))
    assert await desk.select(STATE) == [("delivered",)]
    await desk.take(parcel("returned", 3), parcel("cancelled", 0))
    assert await desk.select(STATE) == [("returned",)]


async def test_an_order_number_and_a_carrier_once_told_stay(desk: Desk) -> None:
    await desk.take(parcel("pre_transit"), parcel("unknown", order_number="N-1", carrier="UPS"))
    await desk.take(parcel("delivered"))
    assert await desk.select("select order_number, carrier, state from shipments") == [
        ("N-1", "UPS", "delivered")
    ]


async def test_reports_of_a_parcel_may_come_in_any_order(desk: Desk) -> None:
    reports = [
        parcel("delivered", 1, order_number="N-1"),
        parcel("cancelled", 1, order_number="N-2"),
        parcel("in_transit", 2, carrier="UPS"),
        msgspec.structs.replace(parcel("delivered", 1), detail="at the door"),
    ]
    ends = []
    for order in itertools.permutations(reports):
        await desk.clear()
        await desk.take(*order)
        ends.append(await desk.everything())
    assert all(end == ends[0] for end in ends)
