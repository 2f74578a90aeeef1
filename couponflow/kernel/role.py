"""What a role is: the one start and stop contract that every capability keeps."""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import anyio


class Stage(enum.IntEnum):
    """When a role stops: all roles of a stage have stopped before the next stage begins to."""

    INTAKE = 0
    """Takes work in from outside: stops first, so that nothing new arrives."""
    WORK = 1
    """Consumes channels: stops when the intake has, after finishing what is on them."""
    FOUNDATION = 2
    """What the others stand on, such as the lease on their messages: stops last."""


class RoleHandle(Protocol):
    """What the supervisor gives to a role while it runs."""

    @property
    def stopping(self) -> anyio.Event:
        """Set when the role should finish what it has and return."""
        ...

    def started(self) -> None:
        """Say that the role now does its work (its port is open, its channel is consumed)."""
        ...


@dataclass(frozen=True, slots=True)
class Role:
    """A named actor with a task group of its own.

    `run` does the work until `handle.stopping` is set, then finishes what it has and returns. It
    may raise: the supervisor restarts it, so whatever it needs it opens inside.
    """

    name: str
    stage: Stage
    run: Callable[[RoleHandle], Awaitable[None]]
