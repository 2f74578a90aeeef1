"""A TCP proxy that misbehaves on command, so that tests meet a network's faults exactly.

    async with fault_proxy(*postgres_target(database_url)) as proxy:
        async with open_database(proxy.postgres_url(database_url), settings) as database:
            proxy.cut_after(b"COMMIT\\0")
            ...
            await proxy.seen.wait()
            proxy.heal()

A fault begins when its method returns. Those of `cut_after` and the like are set off by
bytes and not by time, so that a test repeats exactly.
"""

import contextlib
import socket
from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode, urlsplit

import anyio
from anyio.abc import TaskGroup
from psycopg.conninfo import conninfo_to_dict

from tests.fault_proxy_relay import Address, Conditions, Direction, Mode, Relay, Trigger, close

__all__ = ["Direction", "FaultProxy", "fault_proxy", "postgres_target", "redis_target"]

_HOST = "127.0.0.1"
_BACKLOG = 128


@contextlib.asynccontextmanager
async def fault_proxy(host: str, port: int = 0) -> AsyncIterator["FaultProxy"]:
    """Listen on a free port of loopback and pass on to a server, which need not be up yet.

    A host that begins with a slash is the path of a unix socket, and its port does not matter.
    """
    async with anyio.create_task_group() as group:
        proxy = FaultProxy(host if host.startswith("/") else (host, port), group)
        try:
            group.start_soon(proxy.accept_forever)
            yield proxy
        finally:
            proxy.close()
            group.cancel_scope.cancel()


def postgres_target(database_url: str) -> tuple[str, int]:
    """Where the server of a PostgreSQL URL listens."""
    given = conninfo_to_dict(database_url)
    host, port = str(given.get("host") or _HOST), int(given.get("port") or 5432)
    return (f"{host}/.s.PGSQL.{port}", 0) if host.startswith("/") else (host, port)


def redis_target(redis_url: str) -> tuple[str, int]:
    """Where the server of a Redis URL listens."""
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return parts.path, 0
    return parts.hostname or _HOST, parts.port or 6379


class FaultProxy:
    """The control of a proxy: a method for each fault, and `heal` to end them all.

    One mode holds at a time (`refuse`, `reset`, `stall`, `delay`, `throttle`), and one trigger at a
    time may be armed beside it (`cut_after`, `cut_after_bytes`, `stall_after`,
    `freeze_after`).
    """

    def __init__(self, address: Address, group: TaskGroup) -> None:
        self.accepted = 0
        """Connections accepted so far."""
        self._address = address
        self._group = group
        self._conditions = Conditions()
        self._relays: set[Relay] = set()
        # Keeps the port ours while nobody listens on it.
        self._reservation = _bound_socket(0)
        self.port: int = self._reservation.getsockname()[1]
        self._listener: socket.socket | None = _listening_socket(self.port)

    @property
    def seen(self) -> anyio.Event:
        """Set when the trigger armed last was set off."""
        return self._conditions.seen

    @property
    def cuts(self) -> int:
        """Connections that a trigger has cut so far."""
        return self._conditions.cuts

    @property
    def open_connections(self) -> int:
        return len(self._relays)

    def postgres_url(self, database_url: str) -> str:
        """The same database through this proxy."""
        given = {
            "sslmode": "disable",  # patterns are looked for in clear
            "gssencmode": "disable",
            **conninfo_to_dict(database_url),
            "host": _HOST,
            "port": self.port,
        }
        return f"postgresql://?{urlencode(given, quote_via=quote)}"

    def redis_url(self, redis_url: str) -> str:
        """The same Redis through this proxy."""
        parts = urlsplit(redis_url)
        login, at, _ = parts.netloc.rpartition("@")
        if parts.scheme == "unix":
            parts = parts._replace(scheme="redis", path="")
        return parts._replace(netloc=f"{login}{at}{_HOST}:{self.port}").geturl()

    def heal(self) -> None:
        """Pass everything on again, what was held up first; broken connections stay broken."""
        self._conditions.heal()
        self.pass_through()

    def pass_through(self) -> None:
        """End the mode and keep the trigger armed."""
        self._set_mode(Mode())

    def refuse(self) -> None:
        """End all connections and refuse new ones, like a machine whose server was stopped."""
        self._stop_listening()
        self._end_relays(reset=False)
        self._conditions.set_mode(Mode())

    def reset(self) -> None:
        """Reset all connections, and new ones as soon as they are accepted."""
        self._end_relays(reset=True)
        self._set_mode(Mode(resets=True))

    def stall(self) -> None:
        """Accept and then be silent in both directions; bytes under way wait for `heal`."""
        self._set_mode(Mode(stalls=True))

    def delay(self, seconds: float) -> None:
        """Hold up every chunk, in each direction."""
        self._set_mode(Mode(delay_seconds=seconds))

    def throttle(self, bytes_per_second: int) -> None:
        """Bound the rate of each connection in each direction."""
        self._set_mode(Mode(bytes_per_second=bytes_per_second))

    def cut_after(
        self,
        pattern: bytes,
        direction: Direction = "to_server",
        *,
        count: int = 1,
        drop_pattern: bool = False,
    ) -> None:
        """Cut the next `count` connections through which the pattern passes from now on.

        The pattern is the last that gets through, or with `drop_pattern` the first that does not;
        nothing that comes the other way afterwards gets through. With `drop_pattern`, bytes that
        might be the pattern's beginning wait for what follows them.
        """
        self._conditions.arm(Trigger(direction, "cut", count, pattern, drop_pattern))

    def cut_after_bytes(
        self, count_bytes: int, direction: Direction = "to_server", *, count: int = 1
    ) -> None:
        """Cut the next `count` connections once so many bytes have passed from now on."""
        self._conditions.arm(Trigger(direction, "cut", count, after_bytes=count_bytes))

    def stall_after(
        self, pattern: bytes, direction: Direction = "to_server", *, hold_pattern: bool = False
    ) -> None:
        """Do as `stall` does as soon as the pattern has passed, or with `hold_pattern` before."""
        self._conditions.arm(Trigger(direction, "stall", pattern=pattern, keeps_back=hold_pattern))

    def freeze_after(
        self, pattern: bytes, direction: Direction = "to_server", *, hold_pattern: bool = False
    ) -> None:
        """Stall the next connection through which the pattern passes, and no other."""
        self._conditions.arm(Trigger(direction, "freeze", pattern=pattern, keeps_back=hold_pattern))

    async def accept_forever(self) -> None:
        while True:
            if self._listener is None:
                await self._conditions.change()
                continue
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(self._listener)
                continue
            self.accepted += 1
            client.setblocking(False)
            if self._conditions.mode.resets:
                close(client, reset=True)
            else:
                relay = Relay(self._conditions, client)
                self._relays.add(relay)
                self._group.start_soon(self._serve, relay)

    def close(self) -> None:
        self._stop_listening()
        self._end_relays(reset=False)
        self._reservation.close()

    async def _serve(self, relay: Relay) -> None:
        try:
            await relay.run(self._address)
        finally:
            self._relays.discard(relay)
            relay.end(reset=False)

    def _set_mode(self, mode: Mode) -> None:
        if self._listener is None:
            self._listener = _listening_socket(self.port)
        self._conditions.set_mode(mode)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            close(self._listener)
            self._listener = None

    def _end_relays(self, *, reset: bool) -> None:
        for relay in self._relays:
            relay.end(reset=reset)


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((_HOST, port))
    return bound


def _listening_socket(port: int) -> socket.socket:
    listener = _bound_socket(port)
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    return listener
