"""vCommission's postbacks, which are Trackier's; cancellations and rejections are never pushed.

It has no macro for the status: write the one that a postback is for into its URL, as
`status=approved`. It has none for an id either: `txn_id` is the advertiser's number of the order,
which another advertiser may use as well. `payout_usd` is left alone, for it is in another currency
than the rest.
"""

from couponflow.config_sources import NetworkSettings
from couponflow.webhooks.contract import Source
from couponflow.webhooks.sources.postback import Network, PostbackSource

VCOMMISSION = Network(
    name="vcommission",
    parameters={
        "native_id": ("aid",),
        "click_ref": ("p1", "sub1", "click"),
        "status": ("status", "st"),
        "kind": ("type", "ty"),
        "commission": ("payout", "sum"),
        "sale_amount": ("sale_amount", "osum"),
        "currency": ("currency", "cur"),
        "program_id": ("campaign_id",),
        "order_id": ("txn_id", "order_id", "oid"),
        "clicked_at": ("click_time", "ct"),
        "occurred_at": ("created", "t"),
    },
    statuses={
        "pending": "pending",
        "approved": "confirmed",
        "cancelled": "rejected",
        "rejected": "rejected",
    },
    stand_in=("order_id", "click_ref", "program_id"),
)


def vcommission_source(settings: NetworkSettings) -> Source:
    """Raises `ValueError` for settings that cannot be."""
    return PostbackSource(VCOMMISSION, settings)
