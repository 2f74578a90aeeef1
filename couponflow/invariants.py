"""What `couponflow audit` checks: the invariants of every capability and of the kernel."""

from couponflow.cashback import audit as cashback_audit
from couponflow.checkout import audit as checkout_audit
from couponflow.clicks import audit as clicks_audit
from couponflow.kernel import outbox_audit
from couponflow.kernel.audit import Invariant
from couponflow.notify import audit as notify_audit
from couponflow.redirect import audit as redirect_audit
from couponflow.webhooks import audit as webhooks_audit

INVARIANTS: tuple[Invariant, ...] = (
    *redirect_audit.INVARIANTS,
    *clicks_audit.INVARIANTS,
    *outbox_audit.INVARIANTS,
    *notify_audit.INVARIANTS,
    *webhooks_audit.INVARIANTS,
    *checkout_audit.INVARIANTS,
    *cashback_audit.INVARIANTS,
)
"""In the order in which they are told."""
