"""What must hold between the messages that asked and what people were told."""

from couponflow.kernel.audit import Invariant, query_invariant
from couponflow.kernel.database import load_queries

_queries = load_queries("notify")

INVARIANTS: tuple[Invariant, ...] = (
    query_invariant(
        "nobody-is-told-twice",
        "Whoever was told something is not about to be told the same again.",
        _queries["twice_told"],
    ),
    query_invariant(
        "done-means-told",
        "A message that is recorded as done has its notification.",
        _queries["untold"],
    ),
)
