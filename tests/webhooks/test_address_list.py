import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.webhooks.address_list import AddressList

LIST = AddressList(["192.0.2.7", "198.51.100.0/24", "2001:db8::/64", "fd00::1"])


def test_an_empty_list_is_false_and_holds_nothing() -> None:
    assert not AddressList([])
    assert LIST
    assert "192.0.2.7" not in AddressList([])


@pytest.mark.parametrize(
    "address",
    ["192.0.2.7", "198.51.100.0", "198.51.100.255", "2001:db8::ffff", "fd00::1", "fd00:0::1"],
)
def test_what_is_in_it_is_found(address: str) -> None:
    assert address in LIST


@pytest.mark.parametrize("address", ["::ffff:192.0.2.7", "::ffff:c633:6401"])
def test_an_ipv4_address_within_ipv6_is_the_ipv4_address(address: str) -> None:
    assert address in LIST


@pytest.mark.parametrize(
    "address",
    [
        *("192.0.2.8", "198.51.101.0", "2001:db8:0:1::", "fd00::2", "0.0.0.0"),
        *("", "shop.example", "192.0.2", "192.0.2.7:80", "192.0.2.7 ", "192.0.2.007"),
        *("[fd00::1]", "198.51.100.0/24", "3221225991"),
    ],
)
def test_anything_else_is_not(address: str) -> None:
    assert address not in LIST


@given(st.ip_addresses(), st.integers(0, 32))
def test_a_network_holds_what_begins_as_it_does(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int
) -> None:
    length = bits if address.version == 4 else 4 * bits
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    held = AddressList([f"{address}/{length}"])
    assert str(network.network_address) in held or is_mapped(network.network_address)
    beyond = int(network.broadcast_address) + 1
    if beyond < 1 << network.max_prefixlen:
        neighbour = type(address)(beyond)
        assert str(neighbour) not in held


def is_mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
