"""What must always hold of reports and of the rows that sum them up."""

from couponflow.kernel.audit import Invariant, query_invariant
from couponflow.kernel.database import load_queries

_queries = load_queries("cashback")

INVARIANTS: tuple[Invariant, ...] = (
    query_invariant(
        "transactions-follow-their-reports",
        "Every affiliate transaction says what its history of reports says.",
        _queries["audit_transactions_against_reports"],
    ),
    query_invariant(
        "payouts-follow-their-reports",
        "Every payout says what its history of reports says.",
        _queries["audit_payouts_against_reports"],
    ),
    query_invariant(
        "done-reports-are-kept",
        "A report of a sale or a payout that is recorded as done is in a history.",
        _queries["audit_done_without_report"],
    ),
)
