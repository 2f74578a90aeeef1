"""CJ's postbacks, should it send any: named as in its reports, for nothing else is known.

Its amounts are in the account's currency, which it does not say. `aid` is CJ's name of an ad.
"""

from couponflow.config_sources import NetworkSettings
from couponflow.webhooks.contract import Source
from couponflow.webhooks.sources.postback import Network, PostbackSource

CJ = Network(
    name="cj",
    parameters={
        # Not `originalActionId`, which a correction has in common with what it corrects.
        "native_id": ("commissionId",),
        "click_ref": ("shopperId", "sid", "click"),
        "status": ("actionStatus", "status", "st"),
        "kind": ("actionType", "ty"),
        "commission": ("pubCommissionAmountPubCurrency", "sum"),
        "sale_amount": ("saleAmountPubCurrency", "osum"),
        "currency": ("currency", "cur"),
        "program_id": ("advertiserId",),
        "order_id": ("orderId", "oid"),
        "clicked_at": ("clickDate", "ct"),
        "occurred_at": ("eventDate", "t"),
    },
    # `closed` is a period that was paid, not a reversal.
    statuses={"new": "pending", "extended": "pending", "locked": "payable", "closed": "paid"},
)


def cj_source(settings: NetworkSettings) -> Source:
    """Raises `ValueError` for settings that cannot be."""
    return PostbackSource(CJ, settings)
