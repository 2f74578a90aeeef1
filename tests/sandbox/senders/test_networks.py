"""The networks tell of sales by macros and report fields, each by its own names and statuses."""

import random
from functools import partial
from urllib.parse import parse_qs

import pytest

from couponflow.config_sources import NetworkSettings
from couponflow.messages import TransactionReported
from couponflow.sandbox.senders.events import Event, NetworkName
from couponflow.sandbox.senders.networks import network_events
from couponflow.webhooks.contract import Delivery
from couponflow.webhooks.sources.vcommission import vcommission_source
from tests.sandbox.senders.lives import BEGAN, courses, lives_of
from tests.webhooks.sources.keeping import messages

CLICK = "0199f3c2-7a44-7d15-9f3e-6b1f0c2d4e5a"
# Of each network the parameters of identity, click, status, commission and sale amount;
# vCommission's have no identity.
NAMES: dict[NetworkName, tuple[str, ...]] = {
    "admitad": ("admitad_id", "subid", "payment_status", "payment_sum", "order_sum"),
    "vcommission": ("", "p1", "status", "payout"),
    "cuelinks": ("id", "subid1", "status", "user_commission", "sale_amount"),
    "cj": (
        *("commissionId", "shopperId", "actionStatus", "pubCommissionAmountPubCurrency"),
        "saleAmountPubCurrency",
    ),
}
COURSES: dict[NetworkName, set[tuple[str, ...]]] = {
    "admitad": {
        ("pending", "confirmed", "payable"),
        ("pending", "confirmed"),
        ("pending", "rejected"),
        ("pending", "confirmed", "held", "rejected"),
    },
    "vcommission": {("pending", "confirmed"), ("confirmed",)},
    "cuelinks": {
        ("pending", "confirmed", "payable", "paid"),
        ("pending", "confirmed", "payable"),
        ("pending", "rejected"),
    },
    "cj": {("pending", "payable", "paid"), ("pending", "payable")},
}


def parameters(event: Event) -> dict[str, str]:
    text = event.query or event.body.decode()
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


@pytest.mark.parametrize("network", list(NAMES))
def test_sales_take_every_way(network: NetworkName) -> None:
    lives = lives_of(partial(network_events, network, [CLICK], BEGAN))
    assert courses(lives, "transaction") == COURSES[network]


@pytest.mark.parametrize("network", list(NAMES))
def test_a_sale_is_told_by_the_networks_names_with_amounts_as_decimals(
    network: NetworkName,
) -> None:
    native_id, click, status, *amounts = NAMES[network]
    for life in lives_of(partial(network_events, network, [CLICK], BEGAN), 20):
        told = [parameters(event) for event in life]
        if native_id:
            assert {each[native_id] for each in told} == {life[0].subject}
        assert {each[click] for each in told} == {CLICK}
        assert [each[status] for each in told] == [event.event_type for event in life]
        decimals = {len(each[name].partition(".")[2]) for each in told for name in amounts}
        assert decimals == ({2, 3} if network == "cj" else {2})


@pytest.mark.parametrize("click_ids", [[], [CLICK]])
def test_vcommission_tells_of_an_order_what_we_make_an_id_from(click_ids: list[str]) -> None:
    source = vcommission_source(NetworkSettings())
    lives = lives_of(partial(network_events, "vcommission", click_ids, BEGAN), 20)
    for event in (event for life in lives for event in life):
        query = Delivery(method="GET", query=event.query, received_at=BEGAN)
        (message,) = messages(source, query)
        assert isinstance(message, TransactionReported)
        assert (message.native_id, message.order_id) == (event.subject, parameters(event)["txn_id"])
    assert len({life[0].subject for life in lives}) == len(lives)


def test_admitad_says_pending_for_what_was_approved_before_and_releases_money_by_a_flag() -> None:
    native = {
        (told["payment_status"], told["reward_ready"], event.told[0].state)
        for life in lives_of(partial(network_events, "admitad", [CLICK], BEGAN))
        for event in life
        for told in [parameters(event)]
    }
    assert native == {
        ("new", "false", "pending"),
        ("approved", "false", "confirmed"),
        ("approved", "true", "payable"),
        ("pending", "false", "held"),
        ("declined", "false", "rejected"),
    }


def test_admitad_posts_forms_too_and_the_others_only_ask() -> None:
    for network in NAMES:
        lives = lives_of(partial(network_events, network, [CLICK], BEGAN), 20)
        methods = {event.method for life in lives for event in life}
        assert methods == ({"GET", "POST"} if network == "admitad" else {"GET"})


def test_without_clicks_a_sale_is_nobodys() -> None:
    (first, *_) = network_events("cj", [], BEGAN, random.Random(1))
    assert parameters(first)["shopperId"] == ""
