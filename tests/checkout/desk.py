"""The role `checkout` without its channel, and messages that its tests start from."""

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

from couponflow.checkout.audit import INVARIANTS
from couponflow.checkout.role import checkout_handlers
from couponflow.kernel.attempt import Attempt
from couponflow.kernel.audit import AuditScope, run_audit
from couponflow.kernel.database import Database
from couponflow.kernel.handlers import HandlerContext, HandlerPolicy, Outcome
from couponflow.messages import (
    Message,
    OrderCreated,
    PaymentReported,
    PaymentState,
    RefundReported,
    RefundState,
)
from tests.kernel.outboxes import envelope, select
from tests.samples import CLICKED_AT, USER_ID

PROVIDER = "razorpay"
TABLES = (
    *("refunds", "payments", "provider_orders", "order_items", "orders"),
    *("shipments", "products"),
)
"""Each before those it points at."""
ORDERS = "select number, state, amount_minor, currency from orders order by number"
PAYMENTS = "select provider_payment_id, state, amount_minor from payments order by 1"
REFUNDS = "select provider_refund_id, state, amount_minor from refunds order by 1"

ORDER = OrderCreated(
    number="N-1",
    user_id=USER_ID,
    amount_minor=1000,
    currency="INR",
    payment_provider=PROVIDER,
    provider_order_id="order_1",
    created_at=CLICKED_AT,
)


def payment(
    state: PaymentState,
    number: int = 1,
    *,
    amount_minor: int = 1000,
    currency: str = "INR",
    reason: str = "",
    after_seconds: float = 0.0,
) -> PaymentReported:
    """A report of a payment that names its order as Razorpay does."""
    return PaymentReported(
        provider=PROVIDER,
        payment_id=f"pay_{number}",
        provider_order_id="order_1",
        state=state,
        amount_minor=amount_minor,
        currency=currency,
        method="upi",
        reason=reason,
        occurred_at=CLICKED_AT + after_seconds,
    )


def refund(
    state: RefundState,
    number: int = 1,
    *,
    payment_number: int = 1,
    amount_minor: int = 1000,
    currency: str = "INR",
) -> RefundReported:
    return RefundReported(
        provider=PROVIDER,
        refund_id=f"rfnd_{number}",
        payment_id=f"pay_{payment_number}",
        state=state,
        amount_minor=amount_minor,
        currency=currency,
        occurred_at=CLICKED_AT,
    )


class Desk:
    """Has each message handled under an id of its own, as if nobody had sent it before."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._numbers = itertools.count(1)
        self._runs: dict[type[Message], Callable[[Message, HandlerContext], Awaitable[Outcome]]] = {
            handler.message_type: handler.run for handler in checkout_handlers(HandlerPolicy())
        }

    async def take(self, *messages: Message) -> None:
        for message in messages:
            made = envelope(message, number=next(self._numbers))
            await self._runs[type(message)](message, Attempt(made, self.database))

    async def select(self, query: str) -> list[tuple[object, ...]]:
        return await select(self.database, query)

    async def everything(self) -> dict[str, list[tuple[object, ...]]]:
        """All rows, but for ids, which are those of messages, and the times of writing."""
        left_out = "'{id,order_id,payment_id,updated_at}'"
        found = {
            table: await self.select(
                f"select (to_jsonb(t) - {left_out}::text[])::text from {table} t order by 1"
            )
            for table in TABLES
        }
        found["done"] = await self.select("select count(*) from processed_messages")
        return found

    async def offenders(self) -> dict[str, list[dict[str, str]]]:
        findings = await run_audit(INVARIANTS, AuditScope(self.database, Path()))
        return {finding.name: finding.offenders for finding in findings if not finding.ok}

    async def clear(self) -> None:
        async with self.database.transaction() as connection:
            for table in (*TABLES, "processed_messages"):
                await connection.execute(f"delete from {table}".encode())
