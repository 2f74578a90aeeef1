"""What shoppers, crawlers and browsers ask for, made up: a pure function of its randomness."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from uuid import UUID

from couponflow.sandbox.user_agents import BROWSERS, CRAWLERS

RequestKind = Literal["human", "bot", "prefetch", "double_click", "broken"]

# Each draw makes one request, but a double click makes two: the click and its repetition. So 100
# requests are 94 draws, and 75 of them are first clicks of people.
_DRAWS: dict[RequestKind, int] = {
    "human": 69,
    "double_click": 6,
    "bot": 12,
    "prefetch": 5,
    "broken": 2,
}
_ZIPF_EXPONENT = 1.1
_MAX_REPEAT_SECONDS = 1.8
_HUMAN_NETWORKS = ("203.0.113", "198.51.100")
_CRAWLER_NETWORK = "192.0.2"
_REFERERS = (
    "https://www.google.co.in/",
    "https://coupons.example/stores",
    "https://coupons.example/search?q=festive+sale",
    "https://blog.coupons.example/this-weeks-best-cashback",
    "https://t.co/",
    "android-app://org.telegram.messenger/",
    "",
    "",
)
_LANGUAGES = (
    "en-IN,en;q=0.9,hi;q=0.8",
    "hi-IN,hi;q=0.9,en;q=0.7",
    "en-GB,en;q=0.9",
    "ta-IN,en;q=0.8",
)
_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@dataclass(frozen=True, slots=True)
class ShopperLink:
    """An offer's tracked link without its last part: `/out/{merchantSlug}/{offerUuid}`."""

    path: str


@dataclass(frozen=True, slots=True)
class ShopperRequest:
    """One request, ready to be sent."""

    kind: RequestKind
    method: Literal["GET", "HEAD"]
    path: str
    headers: dict[str, str] = field(hash=False)
    repeat_seconds: float = 0.0
    """A double click comes this long after the request before it; 0 for all others."""


def shopper_requests(
    links: Sequence[ShopperLink], users: Sequence[str], randomness: random.Random
) -> Iterator[ShopperRequest]:
    """Yield requests for ever: about 75% people, 12% crawlers, 6% double clicks, 5% prefetches and
    2% broken links.

    The first link is the most popular one; the others follow Zipf's law. A double click always
    comes directly after the click it repeats.
    """
    if not links or not users:
        raise ValueError("shoppers need at least one link and one user")
    crowd = _Crowd(links, users, randomness)
    kinds, weights = tuple(_DRAWS), tuple(_DRAWS.values())
    while True:
        kind = randomness.choices(kinds, weights)[0]
        match kind:
            case "human":
                yield crowd.click()
            case "double_click":
                first = crowd.click()
                yield first
                seconds = randomness.uniform(0.1, _MAX_REPEAT_SECONDS)
                yield replace(first, kind="double_click", repeat_seconds=seconds)
            case "bot":
                yield crowd.crawl()
            case "prefetch":
                yield crowd.prefetch()
            case "broken":
                yield crowd.broken_link()


class _Crowd:
    """Everybody who may come by."""

    def __init__(
        self, links: Sequence[ShopperLink], users: Sequence[str], randomness: random.Random
    ) -> None:
        self._links = links
        self._users = users
        self._randomness = randomness
        self._popularity = list(
            itertools.accumulate(1 / rank**_ZIPF_EXPONENT for rank in range(1, len(links) + 1))
        )
        # People keep their device; their provider gives them another address now and then.
        self._devices = {user: randomness.choice(BROWSERS) for user in users}

    def click(self) -> ShopperRequest:
        user = self._randomness.choice(self._users)
        return ShopperRequest("human", "GET", f"{self._offer()}/{user}", self._browser(user))

    def crawl(self) -> ShopperRequest:
        """A crawler found somebody's link on a page or in a message."""
        path = f"{self._offer()}/{self._randomness.choice(self._users)}"
        address = f"{_CRAWLER_NETWORK}.{self._randomness.randint(1, 254)}"
        headers = {
            "user-agent": self._randomness.choice(CRAWLERS),
            "accept": "*/*",
            "x-forwarded-for": address,
        }
        return ShopperRequest("bot", "GET", path, headers)

    def prefetch(self) -> ShopperRequest:
        """A browser or a link preview looks ahead; nobody clicked."""
        asked = self.click()
        hint = self._randomness.choice(("prefetch", "prefetch;prerender", "head"))
        if hint == "head":
            return replace(asked, kind="prefetch", method="HEAD")
        return replace(asked, kind="prefetch", headers={**asked.headers, "sec-purpose": hint})

    def broken_link(self) -> ShopperRequest:
        """A person with a link that was cut, mistyped or is years old."""
        asked = self.click()
        offer, _, user = asked.path.rpartition("/")
        merchant = offer.rpartition("/")[0]
        unknown = UUID(int=self._randomness.getrandbits(128), version=4)
        path = self._randomness.choice(
            (
                f"{merchant}/{unknown}/{user}",
                f"{offer[:-5]}/{user}",
                f"{offer}/{user[:-1]}%E2%80%A6",
                f"/out/no-such-store/{unknown}/{user}",
                offer,
            )
        )
        return replace(asked, kind="broken", path=path)

    def _offer(self) -> str:
        return self._randomness.choices(self._links, cum_weights=self._popularity)[0].path

    def _browser(self, user: str) -> dict[str, str]:
        choose = self._randomness.choice
        headers = {
            "user-agent": self._devices[user],
            "accept": _PAGE,
            "accept-language": choose(_LANGUAGES),
            "x-forwarded-for": f"{choose(_HUMAN_NETWORKS)}.{self._randomness.randint(1, 254)}",
        }
        referer = choose(_REFERERS)
        return {**headers, "referer": referer} if referer else headers
