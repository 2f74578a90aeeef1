"""What must hold between messages, what people were told by them, and what became of that."""

from couponflow.kernel.audit import Invariant, query_invariant
from couponflow.kernel.database import load_queries
from couponflow.notify.store import STATES

_queries = load_queries("notify")

INVARIANTS: tuple[Invariant, ...] = (
    query_invariant(
        "nobody-is-told-twice",
        "Whoever was told something is not about to be told the same again.",
        _queries["twice_told"],
    ),
    query_invariant(
        "done-means-told",
        "A message that is recorded as done has its notification, or is kept as a report of one.",
        _queries["untold"],
    ),
    query_invariant(
        "notifications-follow-their-reports",
        "A notification is at least as far as the furthest of its reports.",
        _queries["behind_reports"],
        lambda scope: {"states": list(STATES)},
    ),
)
