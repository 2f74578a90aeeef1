"""Admitad's postbacks: its macros, and what we shorten them to in the URL that we give it."""

from couponflow.config_sources import NetworkSettings
from couponflow.webhooks.contract import Source
from couponflow.webhooks.sources.postback import Network, PostbackSource

ADMITAD = Network(
    name="admitad",
    parameters={
        "native_id": ("admitad_id", "action_id", "aid"),
        "click_ref": ("subid", "click"),
        "status": ("payment_status", "status", "st"),
        "reward_ready": ("reward_ready", "rr"),
        "kind": ("type", "ty"),
        "commission": ("payment_sum", "sum"),
        "sale_amount": ("order_sum", "osum"),
        "currency": ("currency", "cur"),
        "program_id": ("offer_id",),
        "order_id": ("order_id", "oid"),
        "clicked_at": ("click_time", "ct"),
        "occurred_at": ("time", "t"),
    },
    # In a postback `pending` is what was confirmed and is re-checked; in its reports it is `new`.
    statuses={
        "new": "pending",
        "pending": "held",
        "approved": "confirmed",
        "declined": "rejected",
    },
)


def admitad_source(settings: NetworkSettings) -> Source:
    """Raises `ValueError` for settings that cannot be."""
    return PostbackSource(ADMITAD, settings)
