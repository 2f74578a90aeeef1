"""The role `cashback`: consumes its channel with a handler for each kind of report."""

from couponflow.cashback.payouts import record_payout, record_payouts
from couponflow.cashback.transactions import record_transaction, record_transactions
from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.handlers import Handler, HandlerPolicy
from couponflow.kernel.role import Role, Stage
from couponflow.messages import PayoutReported, TransactionReported

POLICY = HandlerPolicy(concurrency=20)
CASHBACK_HANDLERS: tuple[Handler, ...] = (
    Handler("transaction", TransactionReported, record_transaction, POLICY, record_transactions),
    Handler("payout", PayoutReported, record_payout, POLICY, record_payouts),
)


def cashback_role(parts: ConsumerParts) -> Role:
    return Role("cashback", Stage.WORK, ChannelConsumers(parts).run)
