import re
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given, settings

from couponflow.config_sources import NetworkSettings
from couponflow.messages import TransactionReported
from couponflow.webhooks.contract import Delivery, EventUnreadable, Identity
from couponflow.webhooks.sources.postback import Field, Network, PostbackSource
from tests.webhooks.sources.keeping import check_that_it_holds, kept, messages
from tests.webhooks.sources.mutations import (
    NOW,
    anything,
    assert_unreadable,
    check_that_messages_fit_or_the_event_is_unreadable,
    one_character_off,
    one_value_off,
)

SECRET = "8c1f0d2e5b6a79384756"
NETWORK = Network(
    name="a-network",
    parameters={
        "native_id": ("id", "other_id"),
        "click_ref": ("sub",),
        "status": ("status",),
        "reward_ready": ("ready",),
        "kind": ("kind",),
        "commission": ("sum",),
        "sale_amount": ("total",),
        "currency": ("cur",),
        "program_id": ("program",),
        "order_id": ("order",),
        "clicked_at": ("clicked",),
        "occurred_at": ("at",),
    },
    statuses={
        "new": "pending",
        "on hold": "held",
        "ok": "confirmed",
        "no": "rejected",
        "paid": "paid",
    },
)
TOLD = {
    "id": "918273645",
    "sub": "0193a3b0-0000-7000-8000-00000000000a",
    "status": "ok",
    "kind": "sale",
    "sum": "124.95",
    "total": "2,499.00",
    "cur": "inr",
    "program": "30117",
    "order": "KV-55810-B",
    "clicked": "1773514090",
    "at": "2026-03-14T22:05:41+05:30",
}
REPORTED = TransactionReported(
    network="a-network",
    account="one",
    native_id="918273645",
    click_ref="0193a3b0-0000-7000-8000-00000000000a",
    status="confirmed",
    status_native="ok",
    commission="124.95",
    sale_amount="2499.00",
    currency="INR",
    program_id="30117",
    order_id="KV-55810-B",
    clicked_at=1773514090,
    occurred_at=1773506141.0,
    reported_at=NOW,
)


def source(**changes: Any) -> PostbackSource:
    defaults: dict[str, Any] = {"postback_secret": (SECRET,), "account": "one"}
    return PostbackSource(NETWORK, NetworkSettings(**defaults | changes))


SOURCE = source()


def get(token: str = SECRET, **told: Any) -> Delivery:
    return Delivery(method="GET", token=token, query=urlencode(TOLD | told), received_at=NOW)


def post(body: bytes, content_type: str = "") -> Delivery:
    headers = {"content-type": content_type} if content_type else {}
    return Delivery(method="POST", token=SECRET, headers=headers, body=body, received_at=NOW)


def reported(delivery: Delivery, by: PostbackSource = SOURCE) -> TransactionReported:
    [message] = messages(by, delivery)
    assert isinstance(message, TransactionReported)
    return message


@pytest.mark.parametrize("delivery", [get(), get("", secret=SECRET)])
def test_it_is_known_by_a_secret_in_the_path_or_the_query(delivery: Delivery) -> None:
    assert SOURCE.verify(delivery) is None
    assert source(postback_secret=("another", SECRET)).verify(delivery) is None


def test_the_query_may_call_the_secret_a_token() -> None:
    assert SOURCE.verify(Delivery(method="GET", query=f"token={SECRET}", received_at=NOW)) is None


@pytest.mark.parametrize(
    "delivery",
    [
        get(""),
        get("", secret=SECRET[:-1]),
        get("", key=SECRET),
        msgspec.structs.replace(post(f"secret={SECRET}".encode()), token=""),
    ],
)
def test_without_the_secret_it_is_refused(delivery: Delivery) -> None:
    refused = SOURCE.verify(delivery)
    assert refused is not None
    assert refused.reason == "bad-signature"
    assert SECRET not in repr((refused, SOURCE))


@pytest.mark.parametrize("secrets", [(), ("",)])
def test_without_secrets_nobody_is_let_in(secrets: tuple[str, ...]) -> None:
    assert source(postback_secret=secrets).verify(get("", secret="")) is not None


@given(one_character_off(SECRET))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_of_the_secret_is_refused(secret: str) -> None:
    assert SOURCE.verify(get(secret)) is not None
    assert SOURCE.verify(get("", secret=secret)) is not None
    assert SOURCE.verify(msgspec.structs.replace(get(""), query=f"secret={secret}")) is not None
    assert source(postback_secret=(secret,)).verify(get(secret=SECRET)) is not None


@given(anything(SOURCE.header_names, ["application/json", "text/plain"]))
@settings(max_examples=50, deadline=None)
def test_no_delivery_makes_it_raise(delivery: Delivery) -> None:
    check_that_it_holds(SOURCE, delivery)


@given(one_value_off(TOLD))
@settings(max_examples=50, deadline=None)
def test_a_value_that_is_off_makes_no_message_that_does_not_fit(body: bytes) -> None:
    check_that_messages_fit_or_the_event_is_unreadable(SOURCE, body)


def test_the_secret_is_never_written_down() -> None:
    event = kept(SOURCE, get(secret=SECRET))
    assert SECRET not in repr(event)
    assert event.query == urlencode(TOLD)
    assert reported(get(secret=SECRET)) == REPORTED


@pytest.mark.parametrize(
    "delivery",
    [
        get(),
        post(urlencode(TOLD).encode(), "application/x-www-form-urlencoded"),
        post(msgspec.json.encode(TOLD), "application/json"),
        post(msgspec.json.encode([TOLD])),
        post(urlencode({"Push": msgspec.json.encode(TOLD).decode()}).encode()),
        msgspec.structs.replace(get(), method="POST"),
    ],
)
def test_every_way_to_send_it_says_the_same(delivery: Delivery) -> None:
    assert SOURCE.identify(delivery) == Identity("ok")
    assert reported(delivery) == REPORTED


def test_what_is_not_said_is_none_and_a_sale() -> None:
    assert reported(post(b"id=7&sub={sub}&sum=null&cur=&order=[[[order]]]")) == TransactionReported(
        network="a-network",
        account="one",
        native_id="7",
        status="unknown",
        status_native="",
        reported_at=NOW,
    )


def test_what_cannot_be_read_is_left_out_and_the_status_stays() -> None:
    told = reported(get(sub="x" * 201, order="a\0b", cur="rupees", at="2026-03-14 22:05:41"))
    assert (told.click_ref, told.order_id, told.currency, told.occurred_at) == (None,) * 4
    told = reported(get(sum="124,95", total="a lot", status="no"))
    assert (told.commission, told.sale_amount, told.status) == (None, None, "rejected")


@pytest.mark.parametrize("native_id", ["", "null", "{id}", "[[[id]]]"])
def test_a_postback_of_no_transaction_is_seen_to_be_none(native_id: str) -> None:
    delivery = get(id=native_id)
    assert SOURCE.verify(delivery) is None
    assert SOURCE.identify(delivery) == Identity("ok")
    with pytest.raises(EventUnreadable, match=r"\['id', 'other_id'\] says which transaction"):
        messages(SOURCE, delivery)


@pytest.mark.parametrize("delivery", [get(), post(b"")])
def test_a_postback_of_nothing_does_nothing(delivery: Delivery) -> None:
    assert messages(SOURCE, msgspec.structs.replace(delivery, query=f"secret={SECRET}")) == []


def test_an_id_may_be_made_from_what_there_is() -> None:
    made_up = PostbackSource(
        msgspec.structs.replace(NETWORK, stand_in=("order_id", "click_ref")), NetworkSettings()
    )
    first = reported(get(id="", status="new"), made_up)
    assert first.native_id.startswith("stand-in:")
    assert reported(get(id="", sum="1"), made_up).native_id == first.native_id
    others = [get(id="", order="KV-2"), get(id="", sub="c-2"), get(id="", sub="")]
    assert len({first.native_id, *(reported(each, made_up).native_id for each in others)}) == 4
    assert reported(get(), made_up).native_id == "918273645"
    with pytest.raises(EventUnreadable, match=r"\['id', 'other_id', 'order'\] says which"):
        messages(made_up, get(id="", order=""))


@pytest.mark.parametrize("native_id", ["a\0b", "x" * 201])
def test_a_transaction_with_an_impossible_id_is_unreadable(native_id: str) -> None:
    with pytest.raises(EventUnreadable, match="native_id"):
        messages(SOURCE, get(id=native_id))


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"id": 1} x'])
def test_what_is_no_postback_is_unreadable(body: bytes) -> None:
    assert SOURCE.identify(post(body)) == Identity("postback")
    assert_unreadable(SOURCE, body)


def test_bytes_that_are_no_text_are_held_as_any_other() -> None:
    delivery = msgspec.structs.replace(get(), query="id=7&status=a\udcff&order=\udcff&x={\udcff}")
    check_that_it_holds(SOURCE, msgspec.structs.replace(delivery, token=""))
    assert reported(delivery).status_native == "a?"


def test_the_first_of_several_parameters_that_says_something_counts() -> None:
    assert reported(get(id="null", other_id="8")).native_id == "8"
    assert reported(get(other_id="8")).native_id == "918273645"


@pytest.mark.parametrize(
    ("status", "canonical"),
    [
        ("New", "pending"),
        ("on_hold", "held"),
        ("On-Hold", "held"),
        ("ok", "confirmed"),
        ("no", "rejected"),
        ("who knows", "unknown"),
        ("null", "unknown"),
    ],
)
def test_statuses_mean_what_the_network_means(status: str, canonical: str) -> None:
    assert reported(get(status=status)).status == canonical


@pytest.mark.parametrize(
    ("status", "ready", "canonical"),
    [
        ("ok", "true", "payable"),
        ("ok", "True", "payable"),
        ("new", "true", "payable"),
        ("", "true", "payable"),
        ("ok", "false", "confirmed"),
        ("ok", "[[[reward_ready]]]", "confirmed"),
        ("no", "true", "rejected"),
        ("on hold", "true", "held"),
        ("who knows", "true", "unknown"),
        ("paid", "true", "paid"),
    ],
)
def test_a_reward_that_is_ready_is_payable_unless_the_status_forbids_it(
    status: str, ready: str, canonical: str
) -> None:
    assert reported(get(status=status, ready=ready)).status == canonical


@pytest.mark.parametrize(
    ("native", "kind"),
    [
        ("sale", "sale"),
        ("Lead", "lead"),
        ("sim_sale", "sale"),
        ("item_lead", "lead"),
        ("bonus", "bonus"),
        ("perf_inc", "bonus"),
        ("imp", "other"),
        ("", "sale"),
    ],
)
def test_kinds_of_transactions_are_told_apart(native: str, kind: str) -> None:
    assert reported(get(kind=native)).kind == kind


def test_a_postback_without_a_status_is_called_one() -> None:
    assert SOURCE.identify(get(status="")) == Identity("postback")
    assert SOURCE.identify(get(status="x" * 201)) == Identity("postback")


def test_parameters_may_be_called_otherwise() -> None:
    own = source(parameters=("native_id = n", "native_id=m", "sale_amount=a=b"))
    told = reported(get(m="8", **{"a=b": "5"}), own)
    assert (told.native_id, told.sale_amount) == ("8", "5")
    assert reported(get(m="8", n="9"), own).native_id == "9"
    with pytest.raises(EventUnreadable, match=r"\['n', 'm'\]"):
        messages(own, get())


def test_statuses_may_mean_something_else() -> None:
    own = source(statuses=("OK=payable", "a=b_c = paid"))
    assert [reported(get(status=status), own).status for status in ("ok", "A=b c", "new")] == [
        "payable",
        "paid",
        "pending",
    ]


def test_every_field_is_named_where_settings_are_documented() -> None:
    documented = (Path(__file__).parents[3] / "config" / "couponflow.toml").read_text()
    of_admitad = documented.partition("[admitad]")[2].partition("#parameters")[0]
    assert set(get_args(Field)) <= set(re.findall(r"[a-z_]+", of_admitad))


@pytest.mark.parametrize(
    ("setting", "saying"),
    [
        ({"parameters": ("x",)}, r"\[a-network\] parameters must be field=parameter.*'x' is not"),
        ({"parameters": ("native_id=",)}, "parameters must be"),
        ({"parameters": ("price=p",)}, "with a field of .*'commission'"),
        ({"parameters": ("order_id=Token",)}, "'Token' is where the secret is"),
        ({"statuses": ("x",)}, r"\[a-network\] statuses must be native=canonical"),
        ({"statuses": ("ok=fine",)}, "with one of .*'confirmed'"),
        ({"statuses": ("=paid",)}, "statuses must be"),
        ({"account": "a\nb"}, "account must be one line"),
        ({"account": "a" * 201}, "account must be one line"),
    ],
)
def test_settings_that_cannot_be_are_named(setting: dict[str, Any], saying: str) -> None:
    with pytest.raises(ValueError, match=saying):
        source(**setting)
