"""Many lives of one kind, each from a seed of its own, and what they tell."""

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

from couponflow.sandbox.senders.events import Event, Kind

BEGAN = 1_789_900_000


def lives_of(live: Callable[[random.Random], list[Event]], count: int = 150) -> list[list[Event]]:
    return [live(random.Random(seed)) for seed in range(count)]


def bodies(life: Iterable[Event]) -> list[Any]:
    return [json.loads(event.body) for event in life]


def courses(lives: Iterable[list[Event]], kind: Kind) -> set[tuple[str, ...]]:
    """Each way in which states of that kind of thing followed each other, repetitions left out."""
    found = set()
    for life in lives:
        told = sorted(
            (told for event in life for told in event.told if told.thing.kind == kind),
            key=lambda told: told.at,
        )
        found.add(tuple(dict.fromkeys(each.state for each in told)))
    return found - {()}
