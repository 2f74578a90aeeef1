import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.kernel.client_address import UNKNOWN, ClientAddress
from tests.samples import FakeHeaders

PROXIES = ("10.0.0.0/8", "2001:db8:1::/48", "192.0.2.7")
PROXY = "10.1.2.3:4000"

outsiders = st.one_of(
    st.ip_addresses(v=4, network="198.51.100.0/24"), st.ip_addresses(v=6, network="2001:db8:2::/48")
).map(str)
insiders = st.one_of(
    st.ip_addresses(v=4, network="10.0.0.0/8"), st.ip_addresses(v=6, network="2001:db8:1::/48")
).map(str)
hops = st.one_of(outsiders, insiders, st.text(max_size=40))


class HidingHeaders(FakeHeaders):
    """Headers as granian shows them: a value that is not ASCII is there, but cannot be got."""

    def get(self, key: str, /) -> str | None:
        value = super().get(key)
        return value if value is not None and value.isascii() else None

    def get_all(self, key: str, /) -> list[str]:
        return [value for value in super().get_all(key) if value.isascii()]


def forwarded_for(*lines: str) -> FakeHeaders:
    return FakeHeaders(*(("x-forwarded-for", line) for line in lines))


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("198.51.100.4:5555", "198.51.100.4"),
        ("[2001:db8:2::9]:5555", "2001:db8:2::9"),
        ("[::ffff:198.51.100.4]:5555", "198.51.100.4"),
        ("[fe80::1%2]:5555", "fe80::1"),
        ("127.0.0.1:0", "127.0.0.1"),
    ],
)
def test_a_peer_that_is_no_proxy_is_the_client_whatever_it_says(peer: str, expected: str) -> None:
    headers = forwarded_for("203.0.113.1")
    assert ClientAddress(PROXIES).of(peer, headers) == expected
    assert ClientAddress(()).of(peer, headers) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["198.51.100.4"], "198.51.100.4"),
        (["203.0.113.1, 198.51.100.4"], "198.51.100.4"),
        (["203.0.113.1, 198.51.100.4, 10.9.9.9"], "198.51.100.4"),
        (["203.0.113.1", "198.51.100.4", "192.0.2.7"], "198.51.100.4"),
        (["198.51.100.4:8080"], "198.51.100.4"),
        (["[2001:db8:2::9]:8080"], "2001:db8:2::9"),
        (["2001:DB8:2:0:0::9"], "2001:db8:2::9"),
        (["::ffff:198.51.100.4"], "198.51.100.4"),
        (["fe80::1%<script>"], "fe80::1"),
        (["10.9.9.9"], "10.9.9.9"),
        ([], "10.1.2.3"),
        ([""], "10.1.2.3"),
        (["198.51.100.4, unknown"], "10.1.2.3"),
        (["198.51.100.4, unknown, 10.9.9.9"], "10.9.9.9"),
    ],
)
def test_behind_trusted_proxies_the_nearest_other_address_is_the_client(
    lines: list[str], expected: str
) -> None:
    assert ClientAddress(PROXIES).of(PROXY, forwarded_for(*lines)) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["é, 203.0.113.9"], UNKNOWN),
        (["é, 203.0.113.9", "10.9.9.9"], UNKNOWN),
        (["é", "203.0.113.9"], "203.0.113.9"),
        (["é", "203.0.113.9, 10.9.9.9"], "203.0.113.9"),
    ],
)
def test_a_client_named_in_a_hidden_line_only_is_unknown(lines: list[str], expected: str) -> None:
    headers = HidingHeaders(*(("x-forwarded-for", line) for line in lines))
    assert ClientAddress(PROXIES).of(PROXY, headers) == expected
    assert ClientAddress(PROXIES).of("198.51.100.4:5555", headers) == "198.51.100.4"


def test_a_proxy_seen_through_a_socket_for_both_families_is_trusted() -> None:
    headers = forwarded_for("198.51.100.4")
    assert ClientAddress(PROXIES).of("[::ffff:10.1.2.3]:4000", headers) == "198.51.100.4"


@given(
    made_up=st.lists(hops, max_size=20), client=outsiders, proxies=st.lists(insiders, max_size=5)
)
def test_whatever_a_client_makes_up_its_own_address_counts(
    made_up: list[str], client: str, proxies: list[str]
) -> None:
    """The first proxy appends the client's address, each further one the proxy before it."""
    line = ", ".join([*made_up, client, *proxies])
    assert ClientAddress(PROXIES).of(PROXY, forwarded_for(line)) == client


@given(lines=st.lists(st.text(), max_size=4), peer=st.text())
def test_no_header_and_no_peer_makes_it_fail(lines: list[str], peer: str) -> None:
    ClientAddress(PROXIES).of(peer, forwarded_for(*lines))
    ClientAddress(PROXIES).of(PROXY, forwarded_for(*lines))
