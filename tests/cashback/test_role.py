import pytest

from couponflow.cashback.role import CASHBACK_HANDLERS
from couponflow.messages import CHANNELS

pytestmark = pytest.mark.once


def test_there_is_a_handler_for_all_that_the_channel_carries() -> None:
    heard = [handler.message_type for handler in CASHBACK_HANDLERS]
    assert heard == list(CHANNELS["cashback"])
