"""What must hold of every message: it is in one place, and somebody living minds it."""

from couponflow.kernel.audit import Invariant, query_invariant
from couponflow.kernel.database import load_queries

_queries = load_queries("outbox_audit")

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
)
