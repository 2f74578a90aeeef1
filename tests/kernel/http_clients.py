"""Servers in a test, and raw clients that do to them what well-behaved clients never do."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio
from anyio.abc import SocketStream

from couponflow.kernel.http import Listener, ServerName, free_port

HOST = "127.0.0.1"
PATIENCE_SECONDS = 15.0


class Serving(Protocol):
    """`serve` or `serve_fast`, with what is served filled in."""

    def __call__(
        self,
        *,
        listener: Listener,
        stopping: anyio.Event,
        started: Callable[[], None],
        grace_seconds: float,
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Running:
    """A server that accepts connections."""

    listener: Listener
    stopping: anyio.Event
    stopped: anyio.Event = field(default_factory=anyio.Event)

    async def stop(self) -> float:
        """Stop it, and return how many seconds it took."""
        begun_at = anyio.current_time()
        self.stopping.set()
        await self.stopped.wait()
        return anyio.current_time() - begun_at


def new_listener(server: ServerName = "granian", port: int | None = None) -> Listener:
    return Listener(HOST, port or free_port(HOST), server, max_header_bytes=16_384)


@asynccontextmanager
async def serving(
    serve: Serving, listener: Listener, grace_seconds: float = 5.0
) -> AsyncIterator[Running]:
    """Serve during the block, and stop in the end; all of it within `PATIENCE_SECONDS`."""
    running = Running(listener, anyio.Event())
    started = anyio.Event()

    async def run() -> None:
        await serve(
            listener=listener,
            stopping=running.stopping,
            started=started.set,
            grace_seconds=grace_seconds,
        )
        running.stopped.set()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await started.wait()
            yield running
            running.stopping.set()


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def told(self) -> tuple[int, dict[str, str], bytes]:
        """What the application said, without what each server adds in its own way."""
        added = {"date", "content-length", "transfer-encoding", "connection", "server"}
        headers = {name: value for name, value in self.headers if name not in added}
        return self.status, headers, self.body


def request(target: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: a.example", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def exchange(listener: Listener, raw: bytes) -> RawAnswer:
    """Send one request on a connection of its own, and read the answer to its end."""
    stream = await anyio.connect_tcp(listener.host, listener.port)
    async with stream:
        await stream.send(raw)
        return await read_answer(stream, has_body=not raw.startswith(b"HEAD "))


async def read_answer(stream: SocketStream, *, has_body: bool = True) -> RawAnswer:
    """Read one answer from a connection that may stay open after it."""
    read = b""
    while b"\r\n\r\n" not in read:
        read += await stream.receive()
    head, _, body = read.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in lines]
    headers = [(name.strip().lower(), value.strip()) for name, value in pairs]
    fields = dict(headers)
    if not has_body:
        body = b""
    elif fields.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += await stream.receive()
        body = _unchunked(body)
    else:
        while len(body) < int(fields.get("content-length", "0")):
            body += await stream.receive()
    return RawAnswer(int(status_line.split()[1]), headers, body)


def _unchunked(body: bytes) -> bytes:
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        content += body[:length]
        body = body[length + 2 :]
    return content
