import itertools

import pytest

from couponflow.messages import StockReported
from tests.checkout.desk import Desk
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once


def count(quantity: int, after_seconds: float) -> StockReported:
    return StockReported(sku="tea", quantity=quantity, reported_at=CLICKED_AT + after_seconds)


async def test_the_latest_count_stands_and_of_two_at_once_the_lower(desk: Desk) -> None:
    for counts in itertools.permutations([count(1, 1), count(9, 2), count(5, 2), count(7, 0)]):
        await desk.clear()
        await desk.take(*counts)
        assert await desk.select(
            "select sku, stock, extract(epoch from reported_at)::float from products"
        ) == [("tea", 5, CLICKED_AT + 2)]
