"""The desk that the tests of checkout put messages on."""

import pytest

from couponflow.kernel.database import Database
from tests.checkout.desk import Desk


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)
