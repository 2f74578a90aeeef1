"""The catalogue as the hot path sees it: every offer, ready to become a link."""

import msgspec


class MerchantEntry(msgspec.Struct, frozen=True):
    """What all offers of a merchant have in common."""

    merchant_id: str
    slug: str
    name: str
    fallback_url: str | None


class OfferEntry(msgspec.Struct, frozen=True, gc=False):
    """One offer; about 400 bytes with its key, and there may be a million."""

    merchant: MerchantEntry
    parts: tuple[str, ...]
    """The link, cut where the click id belongs: `click_id.join(parts)`."""
    starts_at: float
    """Seconds since the epoch; minus infinity when it has always been on."""
    ends_at: float
    """Seconds since the epoch; plus infinity when open-ended, minus infinity when withdrawn."""


OfferTable = dict[str, OfferEntry]
"""Offers by id in canonical text. Replaced entry by entry while it is being read."""
