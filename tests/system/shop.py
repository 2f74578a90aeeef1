"""A catalogue with one offer for each thing that can be wrong with an offer, as CSV files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID, uuid5

from tests.system.daemon_process import DaemonProcess

_NAMESPACE = UUID("0b6f7c3e-2f5d-4b36-9a57-5c8e1de0f1aa")
FALLBACK_URL = "https://with-fallback.example/sale"
TEMPLATE = "https://network.example/click?subid={click_id}&url={url}"
WITH_FALLBACK, WITHOUT_FALLBACK = "with-fallback", "without-fallback"
OFFER_KINDS = ("live", "future", "expired", "inactive", "moving", "closing", "unheard", "polled")

_MERCHANTS = (
    (WITH_FALLBACK, "With fallback", "admitad", TEMPLATE, FALLBACK_URL, "5"),
    (WITHOUT_FALLBACK, "Without fallback", "cj", TEMPLATE, "", "2.5"),
)


def offer_id(kind: str, merchant: str = WITH_FALLBACK) -> str:
    return str(uuid5(_NAMESPACE, f"{merchant}/{kind}"))


def user_id(name: str) -> str:
    """Of somebody who clicks in one test only, so that no other test makes it a duplicate."""
    return str(uuid5(_NAMESPACE, f"user/{name}"))


def link(kind: str, user: str, merchant: str = WITH_FALLBACK) -> str:
    """A tracked link to an offer of this kind, for the user of that name."""
    return f"/out/{merchant}/{offer_id(kind, merchant)}/{user_id(user)}"


def destination(kind: str) -> str:
    """Where an offer leads, percent-encoded as in a tracking link."""
    return f"https%3A%2F%2Fshop.example%2F{kind}%3Fa%3D1%26b%3D2"


async def import_shop(daemon: DaemonProcess) -> None:
    """Import the catalogue by the command line."""
    folder = daemon.var.parent
    merchants = _write(
        folder / "merchants.csv",
        "slug,name,network,tracking_template,fallback_url,cashback_percent",
        _MERCHANTS,
    )
    offers = _write(
        folder / "offers.csv",
        "offer_uuid,merchant_slug,title,url,starts_at,expires_at,active",
        [_offer(kind, slug) for slug, *_ in _MERCHANTS for kind in OFFER_KINDS],
    )
    for kind, file in (("merchants", merchants), ("offers", offers)):
        result = await daemon.command(kind, "import", str(file))
        assert result.code == 0, result


def _offer(kind: str, merchant: str) -> tuple[str, ...]:
    starts_at = "2100-01-01T00:00:00Z" if kind == "future" else "2024-01-01T00:00:00Z"
    expires_at = "2024-06-01T00:00:00Z" if kind == "expired" else ""
    active = "false" if kind == "inactive" else "true"
    url = f"https://shop.example/{kind}?a=1&b=2"
    return (offer_id(kind, merchant), merchant, kind, url, starts_at, expires_at, active)


def _write(file: Path, header: str, rows: Iterable[Sequence[str]]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return file
