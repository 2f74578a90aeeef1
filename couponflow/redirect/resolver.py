"""From a tracked link to where it leads: the decision, without any I/O."""

import re
from datetime import UTC, datetime
from typing import Literal

import msgspec

from couponflow.kernel.client_address import ClientAddress, Headers
from couponflow.kernel.clock import Clock
from couponflow.kernel.identifiers import Uuid7Generator, is_canonical_uuid
from couponflow.messages import Click
from couponflow.redirect.offers import OfferEntry, OfferTable
from couponflow.redirect.rate_limit import RateLimit
from couponflow.redirect.verdict import VerdictJudge

MAX_PATH_CHARACTERS = 512
MAX_USER_AGENT_CHARACTERS = 512
MAX_REFERER_CHARACTERS = 1024

Reason = Literal[
    "malformed",
    "path-too-long",
    "rate-limited",
    "offer-unknown",
    "offer-of-another-merchant",
    "offer-not-started",
    "offer-ended",
    "catalogue-loading",
]
"""Why a tracked link was not followed; stable, and the end of the problem's `type`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNREADABLE = "(not ASCII)"
_LOOSE_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}").fullmatch


class Redirect(msgspec.Struct, frozen=True, gc=False):
    """Send the shopper to `location` and record the click."""

    location: str
    click: Click


class Detour(msgspec.Struct, frozen=True, gc=False):
    """The offer has ended: send the shopper to the merchant's fallback page, untracked."""

    location: str


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why there is nowhere to send the shopper, for a person and for a program."""

    status: int
    reason: Reason
    detail: str
    retry_after_seconds: int = 0


Resolution = Redirect | Detour | Refusal

_MALFORMED = Refusal(
    400, "malformed", "A tracked link looks like /out/merchant/offer-uuid/user-uuid."
)
_TOO_LONG = Refusal(414, "path-too-long", "No tracked link is this long.")
_UNKNOWN = Refusal(404, "offer-unknown", "There is no such offer. The link may be old or mistyped.")
_OTHER_MERCHANT = Refusal(
    404, "offer-of-another-merchant", "This offer belongs to another store than the link says."
)
_ENDED = Refusal(410, "offer-ended", "This offer has ended.")
_LOADING = Refusal(
    503, "catalogue-loading", "The catalogue is still being loaded. Please try again.", 1
)


class Resolver:
    """Resolves tracked links against the offers in memory.

    It reads clocks and draws ids, and remembers recent visitors; nothing in it waits.
    """

    def __init__(
        self,
        offers: OfferTable,
        clock: Clock,
        ids: Uuid7Generator,
        addresses: ClientAddress,
        limit: RateLimit,
        judge: VerdictJudge,
    ) -> None:
        self._offers = offers
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._ids = ids
        self._addresses = addresses
        self._limit = limit
        self._judge = judge
        self.catalogue_complete = False
        """Set once every offer is in memory: until then an unknown one may yet come."""

    def resolve(self, method: str, path: str, peer: str, headers: Headers) -> Resolution:
        """Decide what to answer to a GET or HEAD of a path that begins with `/out/`."""
        address = self._addresses.of(peer, headers)
        monotonic = self._monotonic()
        wait = self._limit.retry_after_seconds(address, monotonic)
        if wait:
            return Refusal(
                429,
                "rate-limited",
                "Too many clicks from this address in the last minute.",
                int(wait) + 1,
            )
        pieces = path.split("/", 5)
        if len(pieces) != 5:
            return _TOO_LONG if len(path) > MAX_PATH_CHARACTERS else _MALFORMED
        _, _, slug, offer_id, user_id = pieces
        offer = self._offers.get(offer_id)
        if offer is None or not is_canonical_uuid(user_id):
            found = self._look_closer(path, slug, offer_id, user_id)
            if isinstance(found, Refusal):
                return found
            offer, offer_id, user_id = found
            path = path.lower()
        now = self._now()
        if offer.merchant.slug != slug or not offer.starts_at <= now < offer.ends_at:
            return _refuse(offer, slug, now)

        user_agent = _read(headers, "user-agent", MAX_USER_AGENT_CHARACTERS)
        click = Click(
            self._ids.make(now),
            offer.merchant.merchant_id,
            offer_id,
            user_id,
            now,
            address,
            user_agent,
            _read(headers, "referer", MAX_REFERER_CHARACTERS),
            self._judge.judge(method, headers, user_agent, path, monotonic),
        )
        return Redirect(click.click_id.join(offer.parts), click)

    def _look_closer(
        self, path: str, slug: str, offer_id: str, user_id: str
    ) -> tuple[OfferEntry, str, str] | Refusal:
        """Sort out ids in capitals, malformed ids and unknown offers."""
        if len(path) > MAX_PATH_CHARACTERS:
            return _TOO_LONG
        if not slug or not _LOOSE_UUID(offer_id) or not _LOOSE_UUID(user_id):
            return _MALFORMED
        offer = self._offers.get(offer_id.lower())
        if offer is None:
            return _UNKNOWN if self.catalogue_complete else _LOADING
        return offer, offer_id.lower(), user_id.lower()


def _refuse(offer: OfferEntry, slug: str, now: float) -> Resolution:
    if offer.merchant.slug != slug:
        return _OTHER_MERCHANT
    if now < offer.starts_at:
        begins = datetime.fromtimestamp(offer.starts_at, UTC).strftime("%d %B %Y, %H:%M UTC")
        return Refusal(404, "offer-not-started", f"This offer starts on {begins}.")
    fallback = offer.merchant.fallback_url
    return Detour(fallback) if fallback else _ENDED


def _read(headers: Headers, name: str, max_characters: int) -> str:
    """A header's value as it may be stored: bounded, and free of control characters."""
    value = headers.get(name)
    if value is None:
        # A server may hide a value that is not ASCII; a person who sent one is no crawler.
        return _UNREADABLE if name in headers else ""
    if len(value) > max_characters:
        value = value[:max_characters]
    return value if value.isprintable() else _CONTROL.sub(" ", value)
