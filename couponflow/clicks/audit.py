"""What must always hold of stored clicks."""

from couponflow.kernel.audit import query_invariant
from couponflow.kernel.database import load_queries

_queries = load_queries("clicks")

INVARIANTS = (
    query_invariant(
        "click-minutes-agree",
        "Every minute's counters equal the click rows of that minute; where the partition was "
        "dropped, they are at least as high as the rows that came later.",
        _queries["audit_counters_against_rows"],
    ),
    query_invariant(
        "click-totals-agree",
        "Every merchant's total of a verdict equals its click rows; once a partition with that "
        "verdict was dropped, it is at least as high as the rows that are left.",
        _queries["audit_totals_against_rows"],
    ),
    query_invariant(
        "clicks-have-their-offer",
        "Every click belongs to an offer that exists and to that offer's merchant.",
        _queries["audit_clicks_without_offer"],
    ),
)
