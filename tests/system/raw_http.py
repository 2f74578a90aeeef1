"""HTTP by hand: requests of any bytes, and answers as they came."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import msgspec

DEADLINE_SECONDS = 10.0
HOST = "127.0.0.1"


class ProblemDetails(msgspec.Struct):
    """The body of an `application/problem+json` answer."""

    type: str
    title: str
    status: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The last part of the problem's type; fails for any other answer."""
        assert self.headers["content-type"] == "application/problem+json", self
        details = msgspec.json.decode(self.body, type=ProblemDetails)
        prefix, _, name = details.type.rpartition(":")
        assert (prefix, details.status) == ("urn:couponflow:problem", self.status), details
        assert details.title
        return name


async def get(
    port: int, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
) -> Answer:
    """Ask for a path on a connection of its own; fails when there is no answer."""
    return await answer_to(port, request_bytes(method, path, headers))


def request_bytes(method: str, path: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A request after which the server closes the connection."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def answer_to(port: int, request: bytes) -> Answer:
    """The answer to these very bytes; fails when the connection ends without one."""
    answer = await try_answer_to(port, request)
    assert answer is not None, f"no answer to {request[:200]!r}"
    return answer


async def try_answer_to(port: int, request: bytes) -> Answer | None:
    """The answer to these very bytes; None when the server just ends the connection."""
    received = b""
    with anyio.fail_after(DEADLINE_SECONDS):
        async with await anyio.connect_tcp(HOST, port) as stream:
            try:
                await stream.send(request)
                while True:
                    received += await stream.receive()
            except anyio.EndOfStream:
                pass
            except anyio.BrokenResourceError:
                # A server that refuses a long request resets while it is still being sent.
                assert len(request) > 4096
    return _parse(received) if received else None


def _parse(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), received
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return Answer(int(status_line.split(" ")[1]), headers, body)


def _unchunked(body: bytes) -> bytes:
    pieces: list[bytes] = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(pieces)


async def port_answers(port: int) -> bool:
    """Whether anybody accepts connections there."""
    try:
        stream = await anyio.connect_tcp(HOST, port)
    except OSError:
        return False
    await stream.aclose()
    return True


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
