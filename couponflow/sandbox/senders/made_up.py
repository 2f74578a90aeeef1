"""Made-up people, orders and ids for the simulated providers; no number or address is anybody's."""

import random
import string
import uuid
from datetime import UTC, datetime, timedelta, timezone

import msgspec

IST = timezone(timedelta(hours=5, minutes=30))
"""Indian time, in which MSG91 and Shiprocket write theirs."""

_ALPHANUMERICS = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"
_FIRST_NAMES = (
    "Asha",
    "Bhavna",
    "Chetan",
    "Divya",
    "Farhan",
    "Gīta",
    "Harpreet",
    "Śrī",
    "Meenakshi",
)
_LAST_NAMES = ("Rao", "Iyer", "Khan", "Singh", "Das", "Menon", "Kulkarni", "D'Souza")
_SKUS = ("LAMP-09", "KURTA-M-RED", "TEA-250", "BOOK-HINDI-3", "PHONE-CASE-8A", "SAREE-SILK-2")


def token(randomness: random.Random, length: int) -> str:
    """Letters and digits, as most ids and secrets are."""
    return "".join(randomness.choices(_ALPHANUMERICS, k=length))


def hex_id(randomness: random.Random, length: int) -> str:
    return "".join(randomness.choices(_HEX, k=length))


def digits(randomness: random.Random, length: int) -> str:
    """A number of exactly that many digits."""
    return str(randomness.randrange(10 ** (length - 1), 10**length))


def uuid4(randomness: random.Random) -> str:
    return str(uuid.UUID(int=randomness.getrandbits(128), version=4))


class Person(msgspec.Struct, frozen=True):
    """Who buys, is paid and is written to."""

    name: str
    email: str
    phone: str
    """E.164."""
    vpa: str
    """UPI address."""


def person(randomness: random.Random) -> Person:
    first, last = randomness.choice(_FIRST_NAMES), randomness.choice(_LAST_NAMES)
    number = digits(randomness, 8)
    handle = f"shopper{number}"
    return Person(
        name=f"{first} {last}",
        email=f"{handle}@example.com",
        phone=f"+9198{number}",
        vpa=f"{handle}@exampleupi",
    )


class Item(msgspec.Struct, frozen=True):
    """One line of an order."""

    sku: str
    quantity: int
    unit_price_minor: int


class ShopOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order of the simulated shop."""

    number: str
    buyer: Person
    currency: str
    items: tuple[Item, ...]
    created_at: int

    @property
    def amount_minor(self) -> int:
        return sum(item.quantity * item.unit_price_minor for item in self.items)


def shop_order(randomness: random.Random, created_at: int, currency: str = "INR") -> ShopOrder:
    skus = randomness.sample(_SKUS, randomness.randint(1, 3))
    return ShopOrder(
        number=f"CF-{token(randomness, 10).upper()}",
        buyer=person(randomness),
        currency=currency,
        items=tuple(
            Item(sku, randomness.randint(1, 3), randomness.randrange(9_900, 499_900, 100))
            for sku in skus
        ),
        created_at=created_at,
    )


class Course:
    """How time passes in a life: every event is at least a second after the one before it."""

    def __init__(self, began: int, randomness: random.Random) -> None:
        self.at = began
        self._randomness = randomness

    def later(self, at_least_seconds: int, at_most_seconds: int) -> int:
        self.at += self._randomness.randint(at_least_seconds, at_most_seconds)
        return self.at


def utc_text(at: int) -> str:
    """ISO 8601 with `Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ist_text(at: int, pattern: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Indian time without a zone."""
    return datetime.fromtimestamp(at, IST).strftime(pattern)
