"""Parcels on their way back, of which carriers speak as of any other."""

from couponflow.messages import ShipmentState
from couponflow.webhooks.sources.values import text_of

# What would tell the customer of a parcel that goes to the shop.
_GOING_BACK: dict[ShipmentState, ShipmentState] = {
    "out_for_delivery": "return_to_sender",
    "available_for_pickup": "return_to_sender",
    "delivered": "returned",
}


def directed(state: ShipmentState, is_return: object) -> ShipmentState:
    """The state of a parcel, of which a carrier may say that it is a return."""
    if text_of(is_return).strip().lower() not in ("1", "true"):
        return state
    return _GOING_BACK.get(state, state)
