"""What must hold between the events that were acknowledged and what became of them."""

from couponflow.kernel.audit import Invariant, query_invariant
from couponflow.kernel.database import load_queries

_queries = load_queries("webhooks")

INVARIANTS: tuple[Invariant, ...] = (
    query_invariant(
        "every-webhook-is-answered-for",
        "Every event that was acknowledged of late waits, is done, dead or given up.",
        _queries["lost_events"],
        lambda scope: {"hours": scope.done_days * 24 - 1},
    ),
    query_invariant(
        "every-webhook-is-taken-once",
        "No event of the last two days was taken twice.",
        _queries["doubled_events"],
    ),
)
