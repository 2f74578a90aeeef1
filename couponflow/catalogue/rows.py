"""A merchant, an offer and a user as they come from a file, checked field by field.

A `parse_...` function takes the fields in the order of its `..._COLUMNS`. The row it returns may
be used only if nothing was added to `problems`.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

from couponflow.catalogue.fields import (
    boolean_field,
    email_field,
    fallback_url_field,
    mobile_field,
    network_field,
    percent_field,
    required_text_field,
    slug_field,
    template_field,
    text_field,
    time_field,
    url_field,
    uuid_field,
)

MERCHANT_COLUMNS = (
    "slug",
    "name",
    "network",
    "tracking_template",
    "fallback_url",
    "cashback_percent",
)
OFFER_COLUMNS = (
    "offer_uuid",
    "merchant_slug",
    "title",
    "url",
    "starts_at",
    "expires_at",
    "active",
)
USER_COLUMNS = ("user_uuid", "email", "mobile", "name")

_MAX_NAME_CHARACTERS = 200
_MAX_TITLE_CHARACTERS = 500


class MerchantRow(msgspec.Struct, frozen=True, gc=False):
    """A merchant of an affiliate network, known by its slug."""

    merchant_id: str
    """The id it gets if its slug is new; a merchant that exists keeps its own."""
    slug: str
    name: str
    network: str
    tracking_template: str
    fallback_url: str | None
    cashback_percent: Decimal


class OfferRow(msgspec.Struct, frozen=True, gc=False):
    """A page of a merchant that shoppers are sent to, known by its id."""

    offer_id: str
    merchant_slug: str
    title: str
    url: str
    starts_at: datetime | None
    expires_at: datetime | None
    active: bool


class UserRow(msgspec.Struct, frozen=True, gc=False):
    """A shopper, known by their id."""

    user_id: str
    email: str | None
    mobile: str | None
    name: str | None


def parse_merchant(fields: Sequence[str], merchant_id: str, problems: list[str]) -> MerchantRow:
    """A merchant, with `merchant_id` for the case that its slug is new."""
    slug, name, network, tracking_template, fallback_url, cashback_percent = fields
    return MerchantRow(
        merchant_id,
        slug_field("slug", slug, problems),
        required_text_field("name", name, problems, max_characters=_MAX_NAME_CHARACTERS),
        network_field("network", network, problems),
        template_field("tracking_template", tracking_template, problems),
        fallback_url_field("fallback_url", fallback_url, problems),
        percent_field("cashback_percent", cashback_percent, problems),
    )


def parse_offer(fields: Sequence[str], problems: list[str]) -> OfferRow:
    """An offer; whether its merchant exists is not looked at here."""
    offer_uuid, merchant_slug, title, url, starts_at, expires_at, active = fields
    row = OfferRow(
        uuid_field("offer_uuid", offer_uuid, problems),
        slug_field("merchant_slug", merchant_slug, problems),
        required_text_field("title", title, problems, max_characters=_MAX_TITLE_CHARACTERS),
        url_field("url", url, problems),
        time_field("starts_at", starts_at, problems),
        time_field("expires_at", expires_at, problems),
        boolean_field("active", active, problems),
    )
    if row.starts_at and row.expires_at and row.starts_at >= row.expires_at:
        problems.append("starts_at is not before expires_at")
    return row


def parse_user(fields: Sequence[str], problems: list[str]) -> UserRow:
    """A user; whether the e-mail is somebody else's is not looked at here."""
    user_uuid, email, mobile, name = fields
    return UserRow(
        uuid_field("user_uuid", user_uuid, problems),
        email_field("email", email, problems),
        mobile_field("mobile", mobile, problems),
        text_field("name", name, problems, max_characters=_MAX_NAME_CHARACTERS) or None,
    )
