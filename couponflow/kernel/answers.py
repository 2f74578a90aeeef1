"""Whole HTTP answers, and how each kind of server is read and answered, for hot listeners.

A listener whose requests are too many for a framework decides in a plain function or coroutine and
returns an `Answer`. `http_granian_fast.py` sends it without a task a request, `send_answer` sends
it through any ASGI server.
"""

from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from couponflow.kernel.problems import CONTENT_TYPE, Problem, problem_type

NO_STORE = ("cache-control", "no-store")
SERVER = ("server", "couponflow")


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A complete HTTP answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""


def problem_answer(
    status: int, name: str, title: str, detail: str, *extra: tuple[str, str]
) -> Answer:
    """Problem details; `name` ends their stable `type`."""
    problem = Problem(problem_type(name), title, status, detail)
    return Answer(
        status, [("content-type", CONTENT_TYPE), NO_STORE, SERVER, *extra], problem.encode()
    )


def json_answer(status: int, content: object) -> Answer:
    return Answer(
        status,
        [("content-type", "application/json"), NO_STORE, SERVER],
        msgspec.json.encode(content),
    )


class AsgiHeaders:
    """ASGI's list of pairs, read like RSGI's headers."""

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def get(self, key: str, /) -> str | None:
        wanted = key.encode()
        for name, value in self._pairs:
            if name == wanted:
                return value.decode("latin-1")
        return None

    def __contains__(self, key: str, /) -> bool:
        return self.get(key) is not None

    def get_all(self, key: str, /) -> list[str]:
        wanted = key.encode()
        return [value.decode("latin-1") for name, value in self._pairs if name == wanted]


async def send_answer(answer: Answer, method: str, send: Send) -> None:
    """Send it to an ASGI server; a HEAD gets no body."""
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                *((name.encode(), value.encode()) for name, value in answer.headers),
                (b"content-length", str(len(answer.body)).encode()),
            ],
        }
    )
    body = b"" if method == "HEAD" else answer.body
    await send({"type": "http.response.body", "body": body})


def peer_of(scope: Scope) -> str:
    """Who calls, in RSGI's way of writing it; a unix socket has no client."""
    client = scope.get("client")
    if client is None:
        return "127.0.0.1:0"
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def accept_lifespan(receive: Receive, send: Send) -> None:
    """Agree to the start and the end of an ASGI server, which mean nothing to us."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
