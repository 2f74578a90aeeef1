"""What must hold of every message: it is in one place, and somebody living minds it."""

from couponflow.kernel.audit import AuditScope, Invariant, query_invariant
from couponflow.kernel.database import load_queries

LOOKS_BACK_HOURS = 6 * 24
"""How far back pushes and replays are looked at."""
_MARGIN_HOURS = 1

_queries = load_queries("outbox_audit")


def _look_back(scope: AuditScope) -> dict[str, int]:
    """No further than it is remembered that a message is done, and a little less."""
    return {"hours": min(LOOKS_BACK_HOURS, scope.done_days * 24 - _MARGIN_HOURS)}


INVARIANTS: tuple[Invariant, ...] = (
    query_invariant(
        "messages-are-in-one-place",
        "No message is two of these at once: on its way, done, dead.",
        _queries["in_two_places"],
    ),
    query_invariant(
        "messages-at-work-have-a-living-owner",
        "Every message that somebody has is leased to a worker that lives, or has just died.",
        _queries["ownerless"],
    ),
    query_invariant(
        "pushed-messages-are-somewhere",
        "Every message pushed or replayed of late (6 days) is on its way, done, dead or given up.",
        _queries["vanished"],
        _look_back,
    ),
)
