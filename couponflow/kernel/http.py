"""One way to serve an ASGI application, whichever server a listener names."""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, assert_never

import anyio
from starlette.types import ASGIApp

ServerName = Literal["granian", "hypercorn"]


class PortUnavailable(Exception):
    """A listener's address cannot be had: another program has it, or it is not this machine's.

    Stop the other program (`ss -ltnp` names it) or give the listener another `bind`.
    """


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to serve on, the server that serves it, and its bounds."""

    host: str
    port: int
    server: ServerName
    max_connections: int = 1024
    header_seconds: float = 10.0
    """A client that has not sent its whole header by then is dropped."""
    max_header_bytes: int = 32_768

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local_url(self) -> str:
        """Where a client on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


async def serve(
    app: ASGIApp,
    listener: Listener,
    *,
    stopping: anyio.Event,
    started: Callable[[], None],
    grace_seconds: float = 5.0,
) -> None:
    """Serve until `stopping` is set, then let what is in flight finish within `grace_seconds`.

    `started` is called once the address accepts connections. Raises `PortUnavailable`.
    """
    match listener.server:
        case "hypercorn":
            from couponflow.kernel.http_hypercorn import serve_hypercorn

            await serve_hypercorn(app, listener, stopping, started, grace_seconds)
        case "granian":
            from couponflow.kernel.http_granian import serve_granian

            await serve_granian(app, listener, stopping, started, grace_seconds)
        case _:
            assert_never(listener.server)


def open_socket(listener: Listener) -> socket.socket:
    """A listening socket that several daemons of one installation may share (SO_REUSEPORT)."""
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((listener.host, listener.port))
        opened.listen(listener.max_connections)
        opened.setblocking(False)
    except OSError as error:
        opened.close()
        raise unavailable(listener, error) from error
    return opened


def require_available(listener: Listener, *, shared: bool) -> None:
    """Raise `PortUnavailable` if the address cannot be had.

    With `shared`, others who share it in the same way (SO_REUSEPORT) are no obstacle.
    """
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((listener.host, listener.port))
        except OSError as error:
            raise unavailable(listener, error) from error


def free_port(host: str) -> int:
    """A port of this machine that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def unavailable(listener: Listener, error: Exception) -> PortUnavailable:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        cause = "another program listens there"
    else:
        cause = str(error).partition("\n")[0]
    return PortUnavailable(
        f"cannot listen on {listener.address}: {cause}. "
        "Stop the other program or set another bind for this listener."
    )


async def wait_until_accepting(listener: Listener, deadline_seconds: float = 10.0) -> None:
    """Return once a connection to the listener succeeds; for servers that do not say so."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104
    with anyio.fail_after(deadline_seconds):
        while True:
            try:
                stream = await anyio.connect_tcp(host, listener.port)
            except OSError:
                await anyio.sleep(0.005)
            else:
                await stream.aclose()
                return
