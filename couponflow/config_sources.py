"""Settings of the senders of webhooks: what each is verified with, and what is expected of it.

A part of `config.py`. A source with no secret is off: whoever calls it is answered 404.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

SecondsOrOff = Annotated[float, Meta(ge=0)]
CountOrOff = Annotated[int, Meta(ge=0)]


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set for every sender."""

    allowed_addresses: tuple[str, ...] = ()
    """Addresses or networks it may call from; empty is any."""
    silence_seconds: SecondsOrOff = 0.0
    """Silent for longer than this, it shows in `/ready` and in a metric; 0 expects nothing."""
    rate_per_second: CountOrOff = 5_000
    """Verified events taken in a second, by each daemon; 0 is no limit."""


class RazorpaySettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_secret: tuple[str, ...] = ()
    """Live secrets (RAZORPAY_WEBHOOK_SECRET): while one replaces another, both."""


class StripeSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_secret: tuple[str, ...] = ()
    """Live endpoint secrets, whole, with their `whsec_` (STRIPE_WEBHOOK_SECRET)."""
    tolerance_seconds: SecondsOrOff = 300.0
    """How far the signed time may be from now, on either side; 0 does not look."""


class SendgridSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_public_key: tuple[str, ...] = ()
    """Public keys, in base64 as SendGrid shows them (SENDGRID_WEBHOOK_PUBLIC_KEY)."""
    tolerance_seconds: SecondsOrOff = 90_000.0
    """Wide: whether a retry of up to a day later is signed anew is not known. 0 does not look."""


class Msg91Settings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_token: tuple[str, ...] = ()
    """Secret last parts of its URL, `/msg91/TOKEN` (MSG91_WEBHOOK_TOKEN): it signs nothing."""
    utc_offset_minutes: Annotated[int, Meta(ge=-840, le=840)] = 330
    """Of the times in its reports, which say none; they are presumed to be Indian."""


class QstashSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    current_signing_key: str = ""
    """QSTASH_CURRENT_SIGNING_KEY."""
    next_signing_key: str = ""
    """QSTASH_NEXT_SIGNING_KEY."""
    destination_urls: tuple[str, ...] = ()
    """Public URLs of `/api/webhook`, as publishers write them; empty does not compare."""
    leeway_seconds: SecondsOrOff = 5.0
    """How far its clock and ours may be apart."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call `/api/webhook`; empty is none."""


class EasypostSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_secret: tuple[str, ...] = ()
    """Live secrets (EASYPOST_WEBHOOK_SECRET)."""


class ShiprocketSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    webhook_token: tuple[str, ...] = ()
    """Live tokens, as it sends them in `x-api-key` (SHIPROCKET_WEBHOOK_TOKEN)."""
    alias: str = "parcels"
    """Another path for it, since it refuses URLs that hold its own name; empty is none."""
    utc_offset_minutes: Annotated[int, Meta(ge=-840, le=840)] = 330
    """Of the times in its events, which say none."""


class NetworkSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set for an affiliate network's postbacks."""

    postback_secret: tuple[str, ...] = ()
    """Live secrets: as the last part of the path, or in the parameter `secret`."""
    account: str = ""
    """Our account with it, where there are several."""
    parameters: tuple[str, ...] = ()
    """`field=parameter`: what the postback URL calls things, where it is not the usual."""
    statuses: tuple[str, ...] = ()
    """`native=canonical`: what its statuses mean, where it is not the usual."""


class GenericSettings(SourceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sender that needs no code: `POST /generic/NAME`, signed with an HMAC."""

    secrets: tuple[str, ...]
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    signature_header: str
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    """What stands before the signature in its header, as `sha256=`."""
    signed: str = "{body}"
    """What is signed: `{body}`, with `{timestamp}` and `{id}` where they are."""
    timestamp_header: str = ""
    """Where the time of signing is, in seconds since the epoch."""
    tolerance_seconds: SecondsOrOff = 300.0
    """How far that time may be from now; 0 does not look."""
    id_header: str = ""
    """Unless `signed` holds `{id}`, whoever has seen an event can send it again under other ids."""
    id_field: str = ""
    """Where the event's id is in the JSON body, as `data.id`; without an id the body's hash is."""
    type_header: str = ""
    type_field: str = ""
    channel: str = ""
    """A channel that the body is a message for; empty just keeps the event."""
    message_field: str = ""
    """Where in the body that message is; empty is the body itself."""
