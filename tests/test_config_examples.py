"""What config/couponflow.toml tells whoever sets up a sender is what the senders understand."""

import re
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec
import pytest

from couponflow.config import SENDER_SECTIONS
from couponflow.config_loading import load_settings
from couponflow.messages import Message, TransactionReported
from couponflow.webhooks.contract import Delivery, EventUnreadable, StoredEvent
from couponflow.webhooks.sources import qstash
from couponflow.worker_wiring import Senders

DOCUMENTED = (Path(__file__).parents[1] / "config" / "couponflow.toml").read_text()
SECRET = "0123456789abcdef0123456789abcdef"
NETWORKS = ("admitad", "vcommission", "cuelinks", "cj")
RECEIVED_AT = 1_800_000_000.0

ADDRESS = re.compile(r"^# +https://HOST(/\S+)$", re.MULTILINE)
MACRO = re.compile(r"\[\[\[(\w+)\]\]\]|\{(\w+)\}|<(\w+)>")

# What the networks put in for a macro of theirs, or have in that field of a report.
VALUES = {
    **dict.fromkeys(("admitad_id", "id", "commissionId"), "918273645"),
    **dict.fromkeys(("subid", "p1", "subid1", "shopperId"), "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a"),
    "payment_status": "approved",
    "reward_ready": "true",
    "status": "payable",
    "actionStatus": "locked",
    "type": "sale",
    "actionType": "sim_sale",
    **dict.fromkeys(
        ("payment_sum", "payout", "user_commission", "pubCommissionAmountPubCurrency"), "124.95"
    ),
    **dict.fromkeys(("order_sum", "sale_amount", "saleAmountPubCurrency"), "2499.00"),
    "currency": "INR",
    **dict.fromkeys(("offer_id", "campaign_id", "advertiserId"), "30117"),
    **dict.fromkeys(("order_id", "txn_id", "orderId"), "KV-55810-B"),
    "click_time": "1799990000",
    "time": "1799995000",
    "clickDate": "2027-01-14T12:00:00Z",
    **dict.fromkeys(("transaction_date", "eventDate"), "2027-01-14T13:00:00Z"),
}
# Where a network has no macro for it, nothing can be said.
UNSAID = {
    "vcommission": {"sale_amount", "program_id", "clicked_at", "occurred_at"},
    "cuelinks": {"clicked_at"},
}
STATUSES = {
    "admitad": "payable",
    "vcommission": "confirmed",
    "cuelinks": "payable",
    "cj": "payable",
}


def documented_address(network: str) -> str:
    (found,) = [path for path in ADDRESS.findall(DOCUMENTED) if path.startswith(f"/{network}")]
    return found


def senders() -> Senders:
    secrets = {f"{network.upper()}_POSTBACK_SECRET": SECRET for network in NETWORKS}
    return Senders(load_settings(None, {**secrets, "QSTASH_CURRENT_SIGNING_KEY": SECRET}))


def stored(method: str, *, query: str = "", body: bytes = b"") -> StoredEvent:
    return StoredEvent(
        webhook_id="0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5b",
        event_type="",
        event_id="evt_1",
        method=method,
        query=query,
        headers={},
        body=body,
        received_at=RECEIVED_AT,
    )


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a `couponflow.toml` that happens to lie in the current folder."""
    monkeypatch.chdir(tmp_path)


# Addresses of networks


def test_each_network_has_one() -> None:
    paths = {
        path.strip("/").partition("/")[0].partition("?")[0] for path in ADDRESS.findall(DOCUMENTED)
    }
    assert paths & set(SENDER_SECTIONS) == set(NETWORKS)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_documented_address_says_all_that_the_network_can_say(network: str) -> None:
    address = urlsplit(documented_address(network).replace("SECRET", SECRET))
    query = MACRO.sub(
        lambda found: quote(VALUES[next(filter(None, found.groups()))], safe=""), address.query
    )
    source = senders().by_name[network]
    token = address.path.removeprefix(f"/{network}").strip("/")
    delivery = Delivery(method="GET", body=b"", received_at=RECEIVED_AT, token=token, query=query)
    assert source.verify(delivery) is None
    (told,) = source.translate(stored("GET", query=source.public_query(delivery)))
    message = told.message
    assert isinstance(message, TransactionReported)
    assert message.status == STATUSES[network]
    # vCommission has no number of its own for a sale, and its stand-in needs the order's.
    assert message.native_id.startswith("stand-in:" if network == "vcommission" else "918273645")
    unsaid = {
        name
        for name in message.__struct_fields__
        if name != "account" and getattr(message, name) in (None, "")
    }
    assert unsaid == UNSAID.get(network, set())


# Events of QStash

ROW = re.compile(r"^#   ([a-z]+(?:\.[a-z]+)+) +(.+)$", re.MULTILINE)
SAMPLES: dict[str, object] = {
    "number": "CF-1",
    "amount_minor": 49_900,
    "currency": "INR",
    "user_id": "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a",
    "items": [{"sku": "S", "quantity": 1, "unit_price_minor": 49_900}],
    "payment_provider": "razorpay",
    "provider_order_id": "order_1",
    "to": "a@mail.example",
    "subject": "Hello",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "sku": "S",
    "quantity": 7,
    "actor": "orders-service",
    "action": "order.viewed",
    "details": {"channel": "web"},
    "name": "checkout_seconds",
    "value": 1.5,
    "labels": {"service": "orders"},
    "origin": "orders-service",
    "reason": "nobody takes it",
    "message": {"eventType": "order.archived"},
    **dict.fromkeys(
        ("requested_at", "created_at", "reported_at", "measured_at"), "2027-01-14T12:00:00Z"
    ),
}


def documented_events() -> dict[str, tuple[list[str], list[str]]]:
    """By their types, the fields that must be there and those that may."""
    section = DOCUMENTED.partition("[qstash]\n")[2].partition("\n[")[0]
    joined = re.sub(r"\n#    {20,}", " ", section)
    events = {}
    for event_type, fields in ROW.findall(joined):
        must, _, may = fields.partition("[")
        events[event_type] = (re.findall(r"\w+", must), re.findall(r"\w+", may))
    return events


def translated(event_type: str, names: list[str]) -> Message:
    body = {"eventType": event_type, "data": {name: SAMPLES[name] for name in names}}
    event = stored("POST", body=msgspec.json.encode(body))
    (told,) = senders().by_name["qstash"].translate(event)
    return told.message


def test_all_types_of_events_are_documented() -> None:
    told_of = re.findall(r"^- `([a-z.]+)`:", qstash.__doc__ or "", re.MULTILINE)
    assert len(told_of) == 7
    assert list(documented_events()) == told_of


@pytest.mark.parametrize("event_type", documented_events())
def test_an_event_has_the_documented_fields_and_no_others(event_type: str) -> None:
    must, may = documented_events()[event_type]
    message = translated(event_type, [*must, *may])
    fields = {"message" if name == "message_json" else name for name in message.__struct_fields__}
    assert fields == {*must, *may}
    assert type(translated(event_type, must)) is type(message)
    for name in must:
        with pytest.raises(EventUnreadable):
            translated(event_type, [each for each in must if each != name])
