"""Who is really calling: the peer, or whom a trusted proxy says it speaks for."""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

UNKNOWN = "0.0.0.0"  # noqa: S104 - stored, not bound to
"""Stands for every client whose address cannot be read: a valid inet, no machine's own, and one
bucket of the rate limit for all of them."""
_HEADER = "x-forwarded-for"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Headers(Protocol):
    """A request's headers; names in lower case."""

    def get(self, key: str, /) -> str | None: ...
    def get_all(self, key: str, /) -> list[str]: ...
    def __contains__(self, key: str, /) -> bool: ...


class ClientAddress:
    """Reads `X-Forwarded-For`, but only as far as it was written by proxies we trust.

    Each proxy appends the address it was called from, so the list is read from its end: the first
    address that is not a trusted proxy's is the client. Whatever stands before it, the client may
    have made up.

    granian hides a line that is not ASCII, and with it the address a proxy appended to that line.
    Where nothing else names the client it is `UNKNOWN`, not the proxy, whose limit would otherwise
    be everybody's. A line hidden behind a readable one cannot be noticed: proxies either join all
    lines into one or add a line of their own.
    """

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        self._trusted: tuple[Network, ...] = tuple(
            ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies
        )
        self._is_trusted = lru_cache(maxsize=4096)(self._look_up)

    def of(self, peer: str, headers: Headers) -> str:
        """The client's address, without port; `peer` is `ip:port` or `[ip]:port`."""
        address = peer.rpartition(":")[0]
        if address.startswith("["):
            address = _parse(address) or address[1:-1]
        if not self._trusted or not self._is_trusted(address):
            return address
        lines = headers.get_all(_HEADER)
        hops = [hop.strip() for line in lines for hop in line.split(",")]
        for hop in reversed(hops[-16:]):
            claimed = _parse(hop)
            if claimed is None:
                return address
            address = claimed
            if not self._is_trusted(address):
                return address
        # A first line that is there but cannot be got is hidden.
        hidden = _HEADER in headers and headers.get(_HEADER) is None
        return UNKNOWN if hidden else address

    def _look_up(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


@lru_cache(maxsize=4096)
def _parse(hop: str) -> str | None:
    """The canonical address in one entry of the list, which some proxies write with a port.

    An IPv4 address within IPv6, as a socket for both shows it, is the IPv4 address. A scope
    (`fe80::1%eth0`) is left out: it means something to the machine that wrote it only.
    """
    host = hop
    if hop.startswith("["):
        host = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        host = hop.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
