"""Mischief and broken clients at the redirector's port, whichever server it has."""

import unicodedata
from uuid import uuid4

import anyio
import pytest

from tests.system.clicks import click_id_of, refused, stored_click
from tests.system.daemon_process import DaemonProcess
from tests.system.raw_http import HOST, answer_to, try_answer_to
from tests.system.shop import link, offer_id, user_id

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


def has_control_characters(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"M" * 4096, "M" * 512),
        (b"tab\there", "tab here"),
        ("Mobile \U0001f600 phone".encode(), None),
        (b"latin \xe9\xff bytes", None),
        (b"C1 \x80\x85\x9b", None),
    ],
)
async def test_odd_user_agents_are_stored_cleaned(
    plain_daemon: DaemonProcess, sent: bytes, stored: str | None
) -> None:
    path = f"/out/with-fallback/{offer_id('live')}/{uuid4()}"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: ".encode()
    answer = await answer_to(plain_daemon.redirect_port, request + sent + b"\r\n\r\n")
    click = await stored_click(plain_daemon, click_id_of(answer))
    assert not has_control_characters(click.user_agent)
    # The servers differ in what they make of bytes that are not ASCII.
    if stored is not None:
        assert click.user_agent == stored


@pytest.mark.parametrize("byte", [b"\x00", b"\x01", b"\x1b", b"\x7f", b"\n", b"\r"])
async def test_control_characters_in_headers_are_refused_or_stored_cleaned(
    plain_daemon: DaemonProcess, byte: bytes
) -> None:
    path = f"/out/with-fallback/{offer_id('live')}/{uuid4()}"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: a".encode()
    answer = await answer_to(plain_daemon.redirect_port, request + byte + b"b\r\n\r\n")
    if answer.status == 302:
        click = await stored_click(plain_daemon, click_id_of(answer))
        assert not has_control_characters(click.user_agent)
    else:
        assert answer.status == 400


ODD_TARGETS = [
    b"/out/with-fallback/%00/x",
    b"/out/%0d%0aSet-Cookie:%20a=b/x/y",
    b"/out/\xff\xfe/x/y",
    "/out/प्रेम/x/y".encode(),
    b"/out/%ff%fe/x/y",
    b"/out/%/x/y",
    b"/out/%zz/x/y",
    b"/out/../../etc/passwd",
    b"/out/%2e%2e/%2e%2e/x",
    b"//out/a/b/c",
    b"/\x7f",
    b"/out/a\\b/c/d",
    b"/out/a/b/c#fragment",
    b"http://other.example/out/a/b/c",
    b"*",
    b"?",
]


@pytest.mark.parametrize("target", ODD_TARGETS)
async def test_odd_bytes_in_a_path_are_a_client_error(
    plain_daemon: DaemonProcess, target: bytes
) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await try_answer_to(plain_daemon.redirect_port, request)
    assert answer is None or 400 <= answer.status < 500, answer
    assert answer is None or "set-cookie" not in answer.headers
    assert (await plain_daemon.get(link("live", "odd"))).status == 302


async def test_bytes_that_are_no_http_do_not_disturb(plain_daemon: DaemonProcess) -> None:
    for request in (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"hello\r\n\r\n", b"\r\n\r\n\r\n\r\n"):
        async with await anyio.connect_tcp(HOST, plain_daemon.redirect_port) as stream:
            await stream.send(request)
        assert (await plain_daemon.get(link("live", "noise"))).status == 302


async def test_a_path_of_5000_characters_is_too_long(plain_daemon: DaemonProcess) -> None:
    await refused(plain_daemon, "/out/" + "a" * 5000, 414, "path-too-long")
    long_slug = "/out/" + "a" * 5000 + f"/{offer_id('live')}/{user_id('x')}"
    answer = await plain_daemon.get(long_slug)
    assert answer.status in {404, 414}
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        "".join(f"X-Header-{number}: value\r\n" for number in range(150)),
        f"X-Long: {'a' * 100_000}\r\n",
        f"Cookie: {'a=b; ' * 20_000}\r\n",
    ],
    ids=["150 headers", "100 KB in one header", "100 KB of cookies"],
)
async def test_header_floods_are_client_errors(plain_daemon: DaemonProcess, headers: str) -> None:
    head = f"GET {link('live', 'flood')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = await try_answer_to(plain_daemon.redirect_port, f"{head}{headers}\r\n".encode())
    assert answer is None or answer.status in {302, 400, 431}, answer
    assert (await plain_daemon.get(link("live", "flood"))).status == 302
