"""Cuelinks's postbacks, should it send any: named as in its reports, for nothing else is known.

`commission` in its reports is gross, not ours, and is left alone.
"""

from couponflow.config_sources import NetworkSettings
from couponflow.webhooks.contract import Source
from couponflow.webhooks.sources.postback import Network, PostbackSource

CUELINKS = Network(
    name="cuelinks",
    parameters={
        "native_id": ("id", "transaction_id", "aid"),
        "click_ref": ("subid1", "aff_sub", "subid", "click"),
        "status": ("status", "st"),
        "kind": ("type", "ty"),
        "commission": ("user_commission", "sum"),
        "sale_amount": ("sale_amount", "osum"),
        "currency": ("currency", "cur"),
        "program_id": ("campaign_id",),
        "order_id": ("order_id", "oid"),
        "clicked_at": ("click_time", "ct"),
        "occurred_at": ("transaction_date", "t"),
    },
    statuses={
        "pending": "pending",
        "validated": "confirmed",
        "payable": "payable",
        "invoice raised": "payable",
        "claimed": "payable",
        "paid": "paid",
        "rejected": "rejected",
    },
)


def cuelinks_source(settings: NetworkSettings) -> Source:
    """Raises `ValueError` for settings that cannot be."""
    return PostbackSource(CUELINKS, settings)
