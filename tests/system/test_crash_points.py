"""Whoever dies at a dangerous instant loses nothing and does nothing twice."""

import random
from pathlib import Path

import pytest

from couponflow.kernel.migrations import migrate
from tests.system.crash_scenarios import SCENARIOS, Scene
from tests.system.mail import IMPATIENT

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

PLACES = [
    pytest.param(carrier, point, id=f"{point}-{carrier}")
    for point, scenario in SCENARIOS.items()
    for carrier in scenario.carriers
]


@pytest.mark.parametrize(("carrier", "point"), PLACES, indirect=["carrier"])
async def test_everything_happens_once_although_the_process_dies_here(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
    point: str,
) -> None:
    await migrate(empty_database["DATABASE_URL"])
    scenario = SCENARIOS[point]
    scene = Scene(
        folder=var.parent,
        environment={**empty_database, **carrier, **IMPATIENT},
        randomness=randomness,
        point=point,
        visits=scenario.visits,
    )
    await scenario.play(scene)
