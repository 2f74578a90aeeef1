import msgspec
import pytest
from starlette.types import Message

from couponflow.kernel.answers import (
    Answer,
    AsgiHeaders,
    accept_lifespan,
    json_answer,
    peer_of,
    problem_answer,
    send_answer,
)


def test_an_answer_in_json_is_not_kept_by_anybody() -> None:
    assert json_answer(200, {"a": [1]}) == Answer(
        200,
        [
            ("content-type", "application/json"),
            ("cache-control", "no-store"),
            ("server", "couponflow"),
        ],
        b'{"a":[1]}',
    )


def test_a_problem_has_a_stable_type_and_what_else_is_to_be_said() -> None:
    answer = problem_answer(503, "busy", "Busy", "come again", ("retry-after", "1"))
    assert answer.status == 503
    assert dict(answer.headers) == {
        "content-type": "application/problem+json",
        "cache-control": "no-store",
        "server": "couponflow",
        "retry-after": "1",
    }
    assert msgspec.json.decode(answer.body) == {
        "type": "urn:couponflow:problem:busy",
        "title": "Busy",
        "status": 503,
        "detail": "come again",
    }


def test_asgi_headers_are_read_by_name() -> None:
    headers = AsgiHeaders([(b"a", b"1"), (b"b", b"caf\xe9"), (b"a", b"2"), (b"d", b"")])
    assert [headers.get(name) for name in ("a", "b", "c", "d")] == ["1", "café", None, ""]
    assert [headers.get_all(name) for name in ("a", "c")] == [["1", "2"], []]
    assert [name in headers for name in ("a", "c", "d")] == [True, False, True]


@pytest.mark.parametrize(
    ("scope", "peer"),
    [
        ({"client": ("192.0.2.1", 80)}, "192.0.2.1:80"),
        ({"client": ("2001:db8::1", 80)}, "[2001:db8::1]:80"),
        ({"client": None}, "127.0.0.1:0"),
        ({}, "127.0.0.1:0"),
    ],
)
def test_the_peer_is_written_as_rsgi_writes_it(scope: dict[str, object], peer: str) -> None:
    assert peer_of(scope) == peer


@pytest.mark.parametrize(("method", "body"), [("GET", b"abc"), ("POST", b"abc"), ("HEAD", b"")])
async def test_an_answer_is_sent_whole_and_to_a_head_without_its_body(
    method: str, body: bytes
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await send_answer(Answer(201, [("x-a", "1")], b"abc"), method, send)
    assert sent == [
        {
            "type": "http.response.start",
            "status": 201,
            "headers": [(b"x-a", b"1"), (b"content-length", b"3")],
        },
        {"type": "http.response.body", "body": body},
    ]


async def test_the_lifespan_is_accepted_to_its_end() -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await accept_lifespan(receive, send)
    assert sent == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ]
