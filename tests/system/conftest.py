"""Fixtures of tests that drive the real daemon."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres_server import reachable_folder


@pytest.fixture
def var() -> Iterator[Path]:
    """A `var` folder for one daemon, yet to be made, in a folder of the test's own."""
    with reachable_folder() as folder:
        yield folder / "var"


@pytest.fixture
def randomness() -> random.Random:
    """Printed when a test fails; COUPONFLOW_TEST_SEED repeats its choices, if not its timing."""
    seed = int(os.environ.get("COUPONFLOW_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"COUPONFLOW_TEST_SEED={seed}")
    return random.Random(seed)
