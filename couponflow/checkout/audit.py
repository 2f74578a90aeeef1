"""What must hold between orders, their payments and their refunds."""

from couponflow.kernel.audit import Invariant, query_invariant
from couponflow.kernel.database import load_queries

_queries = load_queries("checkout")

INVARIANTS: tuple[Invariant, ...] = (
    query_invariant(
        "paid-means-captured",
        "The state of every order is what its payments and their refunds make it.",
        _queries["audit_order_states"],
    ),
    query_invariant(
        "refunds-within-payments",
        "What a payment says was sent back is the sum of its processed refunds.",
        _queries["audit_refunds"],
    ),
)
