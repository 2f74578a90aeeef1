"""The catalogue every peer serves: the same merchants, offers and users, drawn from one seed."""

import csv
import random
import uuid
from dataclasses import dataclass
from pathlib import Path

MERCHANTS = 50
USERS = 5_000
SEED = 20_250_101

TEMPLATES = {
    "admitad": "https://ad.admitad.com/g/{code}/?subid={{click_id}}&ulp={{url}}",
    "vcommission": (
        "https://track.vcommission.com/click?campaign_id={code}&pub_id=4711"
        "&p1={{click_id}}&url={{url}}"
    ),
    "cuelinks": "https://linksredirect.com/?cid={code}&subid={{click_id}}&url={{url}}",
    "cj": "https://www.anrdoezrs.net/click-{code}-4711?sid={{click_id}}&url={{url}}",
}


@dataclass(frozen=True, slots=True)
class Merchant:
    id: str
    """The peers' own id; couponflow makes its own at import."""
    slug: str
    network: str
    template: str


@dataclass(frozen=True, slots=True)
class Records:
    """A file of records of one width, as `load.lua` reads it."""

    path: Path
    width: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    offer_count: int
    merchants: list[Merchant]
    merchants_csv: Path
    offers_csv: Path
    offers: Records
    users: Records
    sample_path: str
    """A path every peer answers with a redirect."""


def make_catalogue(folder: Path, offer_count: int) -> Catalogue:
    """Write the catalogue as couponflow's import files and as the load generator's records."""
    randomness = random.Random(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    merchants = [_merchant(number, randomness) for number in range(MERCHANTS)]
    merchants_csv = _write_merchants(folder / "merchants.csv", merchants)
    offers_csv, offers = _write_offers(folder, merchants, offer_count, randomness)
    users = [_uuid(randomness) for _ in range(USERS)]
    users_path = folder / "users.records"
    users_path.write_text("".join(users))
    with offers.path.open() as records:
        first = records.read(offers.width)
    return Catalogue(
        offer_count=offer_count,
        merchants=merchants,
        merchants_csv=merchants_csv,
        offers_csv=offers_csv,
        offers=offers,
        users=Records(users_path, len(users[0])),
        sample_path=f"/out/{first}/{users[0]}",
    )


def _uuid(randomness: random.Random) -> str:
    return str(uuid.UUID(int=randomness.getrandbits(128), version=4))


def _merchant(number: int, randomness: random.Random) -> Merchant:
    network = sorted(TEMPLATES)[number % len(TEMPLATES)]
    template = TEMPLATES[network].format(code=randomness.randrange(10**9, 10**10))
    # Slugs of one length keep the load generator's records of one width.
    return Merchant(_uuid(randomness), f"bench-store-{number:03}", network, template)


def _write_merchants(path: Path, merchants: list[Merchant]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["slug", "name", "network", "tracking_template", "fallback_url", "cashback_percent"]
        )
        for merchant in merchants:
            row = [merchant.slug, merchant.slug.title(), merchant.network, merchant.template]
            writer.writerow([*row, f"https://{merchant.slug}.example/", "4.50"])
    return path


def _write_offers(
    folder: Path, merchants: list[Merchant], offer_count: int, randomness: random.Random
) -> tuple[Path, Records]:
    csv_path, records_path = folder / "offers.csv", folder / "offers.records"
    width = len(f"{merchants[0].slug}/{uuid.UUID(int=0)}")
    with csv_path.open("w", newline="") as table, records_path.open("w") as records:
        writer = csv.writer(table)
        writer.writerow(
            ["offer_uuid", "merchant_slug", "title", "url", "starts_at", "expires_at", "active"]
        )
        for number in range(offer_count):
            merchant = merchants[number % len(merchants)]
            offer_id = _uuid(randomness)
            url = f"https://{merchant.slug}.example/deals/{number}?utm_source=coupons&color=red"
            writer.writerow([offer_id, merchant.slug, f"Deal {number}", url, "", "", "true"])
            records.write(f"{merchant.slug}/{offer_id}")
    return csv_path, Records(records_path, width)
