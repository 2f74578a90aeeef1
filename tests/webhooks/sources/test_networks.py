from collections.abc import Callable
from urllib.parse import urlencode

import pytest

from couponflow.config_sources import NetworkSettings
from couponflow.messages import TransactionReported
from couponflow.webhooks.contract import Delivery, EventUnreadable, Source
from couponflow.webhooks.sources.admitad import admitad_source
from couponflow.webhooks.sources.cj import cj_source
from couponflow.webhooks.sources.cuelinks import cuelinks_source
from couponflow.webhooks.sources.vcommission import vcommission_source
from tests.webhooks.sources.keeping import messages
from tests.webhooks.sources.mutations import NOW

SETTINGS = NetworkSettings(postback_secret=("8c1f0d2e5b6a79384756",), account="ours")
OPENERS: dict[str, Callable[[NetworkSettings], Source]] = {
    "admitad": admitad_source,
    "vcommission": vcommission_source,
    "cuelinks": cuelinks_source,
    "cj": cj_source,
}
SOURCES = {name: opener(SETTINGS) for name, opener in OPENERS.items()}
CLICK = "0193a3b0-0000-7000-8000-00000000000a"
VCOMMISSION = {
    "txn_id": "OD-77120-31",
    "p1": CLICK,
    "p2": "{p2}",
    "payout": "86.4",
    "payout_usd": "1.03",
    "goal_value": "purchase",
    "currency": "INR",
    "campaign_id": "10482",
    "status": "approved",
}


def reported(name: str, query: str) -> TransactionReported:
    [message] = messages(SOURCES[name], Delivery(method="GET", query=query, received_at=NOW))
    assert isinstance(message, TransactionReported)
    return message


def test_each_source_is_called_by_its_network() -> None:
    assert [source.name for source in SOURCES.values()] == [*OPENERS]


def test_admitad_may_use_the_short_names_of_the_url_we_give_it() -> None:
    query = (
        f"aid=918273645&click={CLICK}&st=new&sum=124.95&cur=INR&oid=KV-55810-B&osum=2499.00"
        "&ct=1773514090&t=1773515141&ty=sale&rr=false"
    )
    assert reported("admitad", query) == TransactionReported(
        network="admitad",
        account="ours",
        native_id="918273645",
        click_ref=CLICK,
        status="pending",
        status_native="new",
        commission="124.95",
        sale_amount="2499.00",
        currency="INR",
        order_id="KV-55810-B",
        clicked_at=1773514090,
        occurred_at=1773515141,
        reported_at=NOW,
    )


def test_admitad_may_use_the_names_of_its_macros() -> None:
    told = {
        "offer_id": "30117",
        "offer_name": "Kavya Home",
        "admitad_id": "918273645",
        "action_id": "1",
        "subid": CLICK,
        "subid1": "[[[subid1]]]",
        "payment_sum": "124.95",
        "currency": "INR",
        "payment_status": "approved",
        "order_id": "KV-55810-B",
        "order_sum": "2499.00",
        "click_time": "1773514090",
        "time": "1773515141",
        "type": "lead",
        "country_code": "IN",
        "reward_ready": "true",
    }
    assert reported("admitad", urlencode(told)) == TransactionReported(
        network="admitad",
        account="ours",
        native_id="918273645",
        click_ref=CLICK,
        status="payable",
        status_native="approved",
        kind="lead",
        commission="124.95",
        sale_amount="2499.00",
        currency="INR",
        program_id="30117",
        order_id="KV-55810-B",
        clicked_at=1773514090,
        occurred_at=1773515141,
        reported_at=NOW,
    )


def test_vcommission_may_use_the_names_of_its_macros() -> None:
    message = reported("vcommission", urlencode(VCOMMISSION))
    assert message == TransactionReported(
        network="vcommission",
        account="ours",
        native_id=message.native_id,
        click_ref=CLICK,
        status="confirmed",
        status_native="approved",
        commission="86.4",
        currency="INR",
        program_id="10482",
        order_id="OD-77120-31",
        reported_at=NOW,
    )


def test_vcommissions_orders_of_one_number_are_not_one_transaction() -> None:
    told = [
        VCOMMISSION,
        VCOMMISSION | {"campaign_id": "10483"},
        VCOMMISSION | {"p1": CLICK.replace("a", "b")},
        VCOMMISSION | {"txn_id": "OD-77120-32"},
    ]
    ids = [reported("vcommission", urlencode(each)).native_id for each in told]
    assert len(set(ids)) == len(ids)
    assert all(each.startswith("stand-in:") for each in ids)
    again = VCOMMISSION | {"status": "pending", "payout": "80"}
    assert reported("vcommission", urlencode(again)).native_id == ids[0]
    assert reported("vcommission", urlencode(VCOMMISSION | {"aid": "65f2"})).native_id == "65f2"


@pytest.mark.parametrize("txn_id", ["", "null", "{txn_id}"])
def test_vcommissions_click_alone_is_no_transaction(txn_id: str) -> None:
    query = urlencode(VCOMMISSION | {"txn_id": txn_id})
    with pytest.raises(EventUnreadable, match="which transaction"):
        messages(SOURCES["vcommission"], Delivery(method="GET", query=query, received_at=NOW))


def test_cuelinks_may_use_the_names_of_its_reports() -> None:
    told = {
        "id": "44120987",
        "aff_sub": CLICK,
        "subid1": "null",
        "sale_amount": "1,899.0",
        "currency": "INR",
        "commission": "94.95",
        "user_commission": "66.47",
        "status": "Invoice Raised",
        "campaign_id": "731",
        "transaction_date": "2026-03-14T22:05:41+05:30",
        "order_id": "408-1122334",
    }
    assert reported("cuelinks", urlencode(told)) == TransactionReported(
        network="cuelinks",
        account="ours",
        native_id="44120987",
        click_ref=CLICK,
        status="payable",
        status_native="Invoice Raised",
        commission="66.47",
        sale_amount="1899.0",
        currency="INR",
        program_id="731",
        order_id="408-1122334",
        occurred_at=1773506141.0,
        reported_at=NOW,
    )


def test_cj_may_use_the_names_of_its_reports() -> None:
    told = {
        "commissionId": "2790000452",
        "originalActionId": "1880000777",
        "aid": "12",
        "actionStatus": "locked",
        "actionType": "sim_sale",
        "advertiserId": "5551001",
        "orderId": "HO-3391",
        "shopperId": CLICK,
        "clickDate": "2026-03-14T16:18:10Z",
        "eventDate": "2026-03-14T16:35:41Z",
        "saleAmountPubCurrency": "-25.00",
        "pubCommissionAmountPubCurrency": "-1.750",
        "pubCommissionAmountUsd": "-0.02",
    }
    assert reported("cj", urlencode(told)) == TransactionReported(
        network="cj",
        account="ours",
        native_id="2790000452",
        click_ref=CLICK,
        status="payable",
        status_native="locked",
        commission="-1.750",
        sale_amount="-25.00",
        program_id="5551001",
        order_id="HO-3391",
        clicked_at=1773505090.0,
        occurred_at=1773506141.0,
        reported_at=NOW,
    )


@pytest.mark.parametrize("parameter", ["aid", "originalActionId"])
def test_what_cj_names_beside_a_commission_is_no_transaction(parameter: str) -> None:
    delivery = Delivery(method="GET", query=f"{parameter}=12&st=new", received_at=NOW)
    with pytest.raises(EventUnreadable, match="commissionId"):
        messages(SOURCES["cj"], delivery)


@pytest.mark.parametrize("status", ["approved_but_stalled", "Who knows", "5"])
def test_admitads_reward_is_not_ready_by_a_status_that_is_not_understood(status: str) -> None:
    query = urlencode({"aid": "7", "st": status, "rr": "true"})
    assert reported("admitad", query).status == "unknown"


@pytest.mark.parametrize(
    ("network", "native", "canonical"),
    [
        ("admitad", "new", "pending"),
        ("admitad", "pending", "held"),
        ("admitad", "approved", "confirmed"),
        ("admitad", "declined", "rejected"),
        ("admitad", "5", "unknown"),
        ("vcommission", "pending", "pending"),
        ("vcommission", "approved", "confirmed"),
        ("vcommission", "cancelled", "rejected"),
        ("vcommission", "rejected", "rejected"),
        ("cuelinks", "pending", "pending"),
        ("cuelinks", "validated", "confirmed"),
        ("cuelinks", "payable", "payable"),
        ("cuelinks", "invoice_raised", "payable"),
        ("cuelinks", "claimed", "payable"),
        ("cuelinks", "paid", "paid"),
        ("cuelinks", "rejected", "rejected"),
        ("cj", "new", "pending"),
        ("cj", "extended", "pending"),
        ("cj", "locked", "payable"),
        ("cj", "closed", "paid"),
        ("cj", "reversed", "unknown"),
    ],
)
def test_each_network_has_its_own_statuses(network: str, native: str, canonical: str) -> None:
    query = f"aid=7&commissionId=7&st={native}&rr=false"
    assert reported(network, query).status == canonical


@pytest.mark.parametrize("network", [*OPENERS])
def test_settings_reach_each_network(network: str) -> None:
    with pytest.raises(ValueError, match=rf"\[{network}\] parameters must be"):
        OPENERS[network](NetworkSettings(parameters=("x",)))
