"""Whether this process can do its work, check by check."""

from collections.abc import Callable, Collection
from typing import Literal

import msgspec

from couponflow.kernel.clock import Clock

Status = Literal["ready", "degraded", "not_ready"]

Probe = Callable[[], tuple[bool, str]]
"""Answers at once whether something is well, and a detail for the operator."""


class Check(msgspec.Struct, frozen=True):
    """What is known of one thing that can fail."""

    ok: bool
    detail: str
    since: float
    """When `ok` last changed, in seconds since the epoch."""


class Health(msgspec.Struct, frozen=True):
    """The board at one instant, as one listener's `/ready` shows it."""

    status: Status
    checks: dict[str, Check]


class HealthBoard:
    """Where every part of the process says how it is, by name.

    Names are grouped with a colon (`role:clicks`, `queue:clicks`).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened_at = clock.now()
        self._checks: dict[str, Check] = {}
        self._probes: dict[str, Probe] = {}

    def report(self, check: str, ok: bool, detail: str = "") -> None:
        """Say how something is; it stands until the next report."""
        known = self._checks.get(check)
        unchanged = known is not None and known.ok == ok
        since = known.since if known is not None and unchanged else self._clock.now()
        self._checks[check] = Check(ok, detail, since)

    def add_probe(self, name: str, probe: Probe) -> None:
        """Ask `probe` at every snapshot instead of waiting for reports; it must not block.

        A probe that raises shows as a failing check.
        """
        self._probes[name] = probe

    def remove(self, check: str) -> None:
        """Forget a check or a probe; an unknown name is fine."""
        self._checks.pop(check, None)
        self._probes.pop(check, None)

    def snapshot(self, required: Collection[str] = ()) -> Health:
        """The state of every check, judged for a listener that cannot work without `required`.

        A name that ends with a colon stands for every check that begins with it. A required name
        nobody has reported is a failing check: what has not started is not ready.
        """
        for name, probe in self._probes.items():
            self.report(name, *_ask(probe))
        checks = dict(sorted(self._checks.items()))
        for name in sorted(required):
            if not name.endswith(":") and name not in checks:
                checks[name] = Check(False, "nothing reported yet", self._opened_at)
        return Health(_judge(checks, required), checks)


def _judge(checks: dict[str, Check], required: Collection[str]) -> Status:
    failing = [name for name, check in checks.items() if not check.ok]
    prefixes = tuple(name for name in required if name.endswith(":"))
    if any(name in required or name.startswith(prefixes) for name in failing):
        return "not_ready"
    return "degraded" if failing else "ready"


def _ask(probe: Probe) -> tuple[bool, str]:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - a broken probe must not take /ready down with it
        return False, f"its probe failed: {type(error).__name__}: {error}"
