"""How coredis clients are made: for one server or a cluster, over TCP, TLS or a unix socket."""

import logging
import ssl
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import coredis
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.connection import (
    ClusterConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
)
from coredis.pool import ClusterConnectionPool, ConnectionPool
from coredis.retry import NoRetryPolicy

from couponflow.config import RedisSettings

# coredis 6.9 loses a place in its pool with every connection that breaks or is cancelled while it
# is lent out, and waits for ever when none is left. So many are more than a client's life loses.
_MAX_CONNECTIONS = 4096

# coredis logs every connection that fails, with its traceback. `Redis` says once that the server
# is away, and once that it is back.
logging.getLogger("coredis").setLevel(logging.CRITICAL)

RedisClient = coredis.Redis[bytes] | coredis.RedisCluster[bytes]


class _Tcp(TCPConnection):
    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(task_status=task_status)
        finally:
            _close_streams(vars(self).values())


class _Unix(UnixDomainSocketConnection):
    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(task_status=task_status)
        finally:
            _close_streams(vars(self).values())


class _Cluster(ClusterConnection):
    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(task_status=task_status)
        finally:
            _close_streams(vars(self).values())


def _close_streams(values: Iterable[object]) -> None:
    """Close what coredis leaves open where dialling failed, and of which anyio then warns."""
    for value in values:
        if isinstance(value, MemoryObjectSendStream | MemoryObjectReceiveStream):
            value.close()


class Dialling:
    """Makes clients that never send a command twice by themselves, and answer in bytes."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        parts = urlsplit(settings.url)
        self._socket = unquote(parts.path) if parts.scheme == "unix" else ""
        self._first = TCPLocation(parts.hostname or "localhost", parts.port or 6379)
        self._nodes: Sequence[TCPLocation] = (self._first,)
        self._tls = _tls_context(settings.url)

    @property
    def place(self) -> str:
        """Where the URL leads, without its secrets."""
        return self._socket or f"{self._first.host}:{self._first.port}"

    async def somebody_listens(self) -> None:
        """Raise `OSError` unless a connection can be made; a refusal costs coredis much more."""
        if self._socket:
            await (await anyio.connect_unix(self._socket)).aclose()
            return
        for location in self._nodes:
            try:
                await (await anyio.connect_tcp(location.host, location.port)).aclose()
            except OSError:
                if location == self._nodes[-1]:
                    raise
            else:
                self._nodes = [location, *(each for each in self._nodes if each != location)]
                return

    def client(self) -> RedisClient:
        return self._cluster() if self._settings.cluster else self._server()

    def opened(self, client: RedisClient) -> None:
        """Dial next time whatever nodes there are now: the one of the URL may be gone by then."""
        if isinstance(client, coredis.RedisCluster):
            found = client.connection_pool.cluster_layout.nodes
            known = (TCPLocation(node.host, node.port) for node in found)
            self._nodes = [*dict.fromkeys([*known, self._first])]

    def closed(self, client: RedisClient) -> None:
        if isinstance(client, coredis.RedisCluster):
            for value in vars(client.connection_pool.cluster_layout).values():
                if isinstance(value, tuple):
                    _close_streams(value)

    def _server(self) -> coredis.Redis[bytes]:
        pool = ConnectionPool.from_url(
            self._settings.url,
            decode_components=True,
            connect_timeout=self._settings.timeout_seconds,
            max_connections=_MAX_CONNECTIONS,
            ssl_context=self._tls,
        )
        # Its type is that of the URL, which the type checker cannot know.
        vars(pool)["connection_class"] = _Unix if self._socket else _Tcp
        return coredis.Redis(
            connection_pool=pool, verify_version=False, retry_policy=NoRetryPolicy()
        )

    def _cluster(self) -> coredis.RedisCluster[bytes]:
        pool = ClusterConnectionPool.from_url(
            self._settings.url,
            decode_components=True,
            startup_nodes=self._nodes,
            # What it would ask of every node, the first call that needs the missing slots tells.
            skip_full_coverage_check=True,
            connect_timeout=self._settings.timeout_seconds,
            max_connections=_MAX_CONNECTIONS,
            max_connections_per_node=True,
            ssl_context=self._tls,
        )
        pool.connection_class = _Cluster
        return coredis.RedisCluster(
            connection_pool=pool, verify_version=False, retry_policy=NoRetryPolicy()
        )


def _tls_context(url: str) -> ssl.SSLContext | None:
    """What `rediss://` checks: the certificate and, unlike coredis, the name in it.

    `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` in the URL's query name files, and
    `ssl_check_hostname=false` is for clusters whose nodes are known by addresses.
    """
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return None
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    context.check_hostname = query.get("ssl_check_hostname", "true").lower() != "false"
    if "ssl_certfile" in query:
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    return context
