"""Every crash point is in product code, once, and has a test that dies there."""

import ast
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from couponflow.kernel.crash_points import CRASH_POINTS
from tests.system.crash_scenarios import SCENARIOS

PRODUCT = Path(__file__).parents[1] / "couponflow"


def product_code() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(PRODUCT.rglob("*.py"))]


def calls_in(sources: Iterable[str]) -> Counter[str]:
    """How often each point is called; a call whose name is not written out counts as empty."""
    calls: Counter[str] = Counter()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(
                    func=ast.Name(id="crash_point"), args=[ast.Constant(value=str(name))]
                ):
                    calls[name] += 1
                case ast.Call(func=ast.Name(id="crash_point") | ast.Attribute(attr="crash_point")):
                    calls[""] += 1
    return calls


def complaints(points: Iterable[str], calls: Counter[str], scenarios: Iterable[str]) -> list[str]:
    """What is wrong between the points that are listed, called and tested."""
    listed, tested = set(points), set(scenarios)
    return [
        *(f"{name}: no scenario dies there" for name in sorted(listed - tested)),
        *(f"{name}: a scenario for no point" for name in sorted(tested - listed)),
        *(f"{name}: called nowhere in couponflow/" for name in sorted(listed - set(calls))),
        *(f"{name!r}: called and not listed" for name in sorted(set(calls) - listed)),
        # Two places are two dangers: each needs a name, and a death, of its own.
        *(f"{name}: called {n} times" for name, n in sorted(calls.items()) if n > 1),
    ]


def test_every_crash_point_is_called_once_and_has_a_scenario() -> None:
    assert complaints(CRASH_POINTS, calls_in(product_code()), SCENARIOS) == []


def test_every_scenario_plays_somewhere_and_dies_at_the_first_visit() -> None:
    for name, scenario in SCENARIOS.items():
        assert scenario.carriers, name
        assert scenario.visits[0] == 1, name


@pytest.mark.parametrize(
    ("listed", "called", "tested", "complaint"),
    [
        (["a"], ["a"], [], "a: no scenario dies there"),
        ([], [], ["a"], "a: a scenario for no point"),
        (["a"], [], ["a"], "a: called nowhere in couponflow/"),
        (["a"], ["a", "b"], ["a"], "'b': called and not listed"),
        (["a"], ["a", "a"], ["a"], "a: called 2 times"),
    ],
)
def test_each_gap_is_complained_of(
    listed: list[str], called: list[str], tested: list[str], complaint: str
) -> None:
    assert complaints(listed, Counter(called), tested) == [complaint]


def test_a_call_is_found_wherever_it_is_and_however_it_is_written() -> None:
    source = """
def outer():
    if True:
        crash_point("one.two")
    points.crash_point("three")
    crash_point(name)
"""
    assert calls_in([source]) == {"one.two": 1, "": 2}
