import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from tests.fault_proxy import FaultProxy, fault_proxy, postgres_target, redis_target
from tests.fault_proxy_relay import Trigger, Watch
from tests.samples import PATIENCE_SECONDS, until

A_MOMENT_SECONDS = 0.05


class Echo:
    """A server that sends everything back, and remembers what it received."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.port = 0

    async def handle(self, stream: SocketStream) -> None:
        async with stream:
            try:
                async for chunk in stream:
                    self.received += chunk
                    await stream.send(chunk)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return


@asynccontextmanager
async def echo_server() -> AsyncIterator[Echo]:
    echo = Echo()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    echo.port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo.handle)
        yield echo
        group.cancel_scope.cancel()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with echo_server() as server:
        yield server


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with fault_proxy("127.0.0.1", echo.port) as opened:
        yield opened


async def dial(proxy: FaultProxy) -> SocketStream:
    return await anyio.connect_tcp("127.0.0.1", proxy.port)


async def receive(stream: SocketStream, count: int) -> bytes:
    """Exactly so many bytes."""
    received = b""
    with anyio.fail_after(PATIENCE_SECONDS):
        while len(received) < count:
            received += await stream.receive(count - len(received))
    return received


async def receive_until_the_end(stream: SocketStream) -> bytes:
    received = b""
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return received


async def exchange(stream: SocketStream, text: bytes) -> None:
    await stream.send(text)
    assert await receive(stream, len(text)) == text


async def hears_nothing(stream: SocketStream) -> bool:
    with anyio.move_on_after(A_MOMENT_SECONDS):
        await stream.receive()
    return True


async def test_what_is_sent_arrives_and_the_end_too(echo: Echo, proxy: FaultProxy) -> None:
    text = bytes(range(256)) * 2_000
    async with await dial(proxy) as stream, anyio.create_task_group() as group:
        group.start_soon(stream.send, text)
        assert await receive(stream, len(text)) == text
        await stream.send_eof()
        assert await receive_until_the_end(stream) == b""
    assert bytes(echo.received) == text
    await until(lambda: proxy.open_connections == 0)
    assert (proxy.accepted, proxy.cuts, proxy.seen.is_set()) == (1, 0, False)


async def test_refused_are_the_open_and_the_new_until_healed(proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        await exchange(stream, b"hello")
        proxy.refuse()
        assert await receive_until_the_end(stream) == b""
        for _ in range(3):
            with pytest.raises(OSError, match=r"All connection attempts failed|refused"):
                await dial(proxy)
    proxy.heal()
    async with await dial(proxy) as stream:
        await exchange(stream, b"hello again")
    assert proxy.accepted == 2


async def test_reset_are_the_open_and_the_new_until_healed(proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        await exchange(stream, b"hello")
        proxy.reset()
        with pytest.raises(anyio.BrokenResourceError) as broken:
            await stream.receive()
        assert isinstance(broken.value.__cause__, ConnectionResetError)
    async with await dial(proxy) as stream:
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
    proxy.heal()
    async with await dial(proxy) as stream:
        await exchange(stream, b"hello again")


async def test_a_stall_freezes_the_open_and_the_new_and_loses_nothing(
    echo: Echo, proxy: FaultProxy
) -> None:
    async with await dial(proxy) as stream:
        await exchange(stream, b"one")
        proxy.stall()
        await stream.send(b"two")
        async with await dial(proxy) as newcomer:
            await newcomer.send(b"2")
            assert await hears_nothing(stream)
            assert await hears_nothing(newcomer)
            assert bytes(echo.received) == b"one"
            proxy.heal()
            assert await receive(stream, 3) == b"two"
            assert await receive(newcomer, 1) == b"2"


async def test_a_delay_holds_up_both_directions_and_ends_at_once_when_healed(
    proxy: FaultProxy,
) -> None:
    async with await dial(proxy) as stream:
        await exchange(stream, b"quick")
        proxy.delay(A_MOMENT_SECONDS)
        started = time.monotonic()
        await exchange(stream, b"slow")
        assert 2 * A_MOMENT_SECONDS <= time.monotonic() - started < PATIENCE_SECONDS
        proxy.delay(1_000)
        await stream.send(b"never?")
        assert await hears_nothing(stream)
        proxy.heal()
        assert await receive(stream, 6) == b"never?"


async def test_a_throttle_bounds_the_rate(proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        proxy.throttle(2_000)
        started = time.monotonic()
        await exchange(stream, bytes(400))
        assert time.monotonic() - started >= 0.15
        proxy.throttle(1)
        await stream.send(bytes(1_000))
        assert await receive(stream, 1) == b"\0"
        proxy.heal()
        assert await receive(stream, 999) == bytes(999)


async def test_a_cut_after_a_pattern_lets_it_through_and_no_answer(
    echo: Echo, proxy: FaultProxy
) -> None:
    async with await dial(proxy) as stream:
        await exchange(stream, b"begin;")
        proxy.cut_after(b"COMMIT")
        await stream.send(b"insert;COMMIT;begin;")
        assert await receive_until_the_end(stream) == b""
    await proxy.seen.wait()
    await until(lambda: bytes(echo.received) == b"begin;insert;COMMIT")
    async with await dial(proxy) as stream:
        await exchange(stream, b"COMMIT")
    assert (proxy.cuts, proxy.accepted) == (1, 2)


async def test_a_cut_before_a_pattern_keeps_it_back(echo: Echo, proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        proxy.cut_after(b"COMMIT", drop_pattern=True)
        await stream.send(b"insert;COMMIT;begin;")
        assert await receive_until_the_end(stream) == b""
    await until(lambda: bytes(echo.received) == b"insert;")


async def test_a_cut_towards_the_client(echo: Echo, proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        proxy.cut_after(b"OK", "to_client")
        await stream.send(b"so OK then")
        assert await receive_until_the_end(stream) == b"so OK"
    assert bytes(echo.received) == b"so OK then"


async def test_each_of_several_cuts_takes_one_connection(proxy: FaultProxy) -> None:
    proxy.cut_after(b"x", count=2)
    for ends in (True, True, False):
        async with await dial(proxy) as stream:
            await exchange(stream, b"abc")
            await stream.send(b"x")
            if ends:
                assert await receive_until_the_end(stream) == b""
            else:
                assert await receive(stream, 1) == b"x"
    assert proxy.cuts == 2


@pytest.mark.parametrize("drop_pattern", [False, True])
async def test_a_pattern_may_come_byte_by_byte(
    echo: Echo, proxy: FaultProxy, drop_pattern: bool
) -> None:
    text = b"COCOMMCOMMIT-and-more"
    sent = b"COCOMM" if drop_pattern else b"COCOMMCOMMIT"
    proxy.cut_after(b"COMMIT", drop_pattern=drop_pattern)
    async with await dial(proxy) as stream:
        try:
            for size, byte in enumerate(text, 1):
                await stream.send(bytes([byte]))
                if not drop_pattern and size < len(sent):
                    assert await receive(stream, 1) == bytes([byte])
                await anyio.wait_all_tasks_blocked()
        except anyio.BrokenResourceError:
            assert proxy.cuts == 1
        await receive_until_the_end(stream)
    await until(lambda: bytes(echo.received) == sent)
    assert proxy.seen.is_set()


async def test_what_is_held_back_for_a_pattern_goes_on_when_healed(proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        proxy.cut_after(b"COMMIT", drop_pattern=True)
        await stream.send(b"one COM")
        assert await receive(stream, 4) == b"one "
        assert await hears_nothing(stream)
        proxy.heal()
        assert await receive(stream, 3) == b"COM"


async def test_what_is_held_back_for_a_pattern_goes_on_at_the_end(proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream:
        proxy.cut_after(b"COMMIT", drop_pattern=True)
        await stream.send(b"one COM")
        await stream.send_eof()
        assert await receive_until_the_end(stream) == b"one COM"
    assert proxy.cuts == 0


@pytest.mark.parametrize("count_bytes", [0, 1, 7, 8, 9])
async def test_a_cut_after_bytes_counts_them_exactly(
    echo: Echo, proxy: FaultProxy, count_bytes: int
) -> None:
    async with await dial(proxy) as stream:
        await exchange(stream, b"not counted")
        proxy.cut_after_bytes(count_bytes, "to_client")
        await stream.send(b"12345678")
        await stream.send(b"9")
        assert await receive_until_the_end(stream) == b"123456789"[:count_bytes]
    assert bytes(echo.received) == b"not counted123456789"


@pytest.mark.parametrize(("hold", "before"), [(False, b"a;COMMIT"), (True, b"a;")])
async def test_a_stall_at_a_pattern_ends_with_everything_delivered(
    echo: Echo, proxy: FaultProxy, hold: bool, before: bytes
) -> None:
    async with await dial(proxy) as stream:
        proxy.stall_after(b"COMMIT", hold_pattern=hold)
        await stream.send(b"a;COMMIT;b")
        await proxy.seen.wait()
        await until(lambda: bytes(echo.received) == before)
        assert await hears_nothing(stream)
        proxy.heal()
        assert await receive(stream, 10) == b"a;COMMIT;b"
    assert proxy.cuts == 0


async def test_one_connection_may_freeze_alone(echo: Echo, proxy: FaultProxy) -> None:
    async with await dial(proxy) as stream, await dial(proxy) as other:
        proxy.freeze_after(b"COMMIT", hold_pattern=True)
        await stream.send(b"a;COMMIT;b")
        await proxy.seen.wait()
        await exchange(other, b"COMMIT too")
        assert await hears_nothing(stream)
        assert b"COMMIT;" not in echo.received
        proxy.heal()
        assert await receive(stream, 10) == b"a;COMMIT;b"


async def test_a_server_that_is_away_resets_its_clients() -> None:
    async with echo_server() as echo:
        port = echo.port
    async with fault_proxy("127.0.0.1", port) as proxy, await dial(proxy) as stream:
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


FAULTS: list[Callable[[FaultProxy], None]] = [
    FaultProxy.pass_through,
    FaultProxy.refuse,
    FaultProxy.reset,
    FaultProxy.stall,
    lambda proxy: proxy.delay(1_000),
    lambda proxy: proxy.throttle(1),
    lambda proxy: proxy.cut_after(b"C", drop_pattern=True),
]


@given(faults=st.lists(st.sampled_from(FAULTS), max_size=6))
async def test_after_any_faults_heal_is_enough(faults: list[Callable[[FaultProxy], None]]) -> None:
    async with echo_server() as echo, fault_proxy("127.0.0.1", echo.port) as proxy:
        async with await dial(proxy):
            for fault in faults:
                fault(proxy)
            proxy.heal()
        async with await dial(proxy) as stream:
            await exchange(stream, b"COMMIT")
        await until(lambda: proxy.open_connections == 0)


@given(
    text=st.lists(st.sampled_from(b"ab"), max_size=30).map(bytes),
    pattern=st.lists(st.sampled_from(b"ab"), min_size=1, max_size=5).map(bytes),
    sizes=st.lists(st.integers(1, 5)),
    keeps_back=st.booleans(),
)
def test_a_watch_finds_the_first_match_whatever_the_pieces(
    text: bytes, pattern: bytes, sizes: list[int], keeps_back: bool
) -> None:
    watch = Watch(Trigger("to_server", "cut", pattern=pattern, keeps_back=keeps_back))
    passed, rest, at = b"", None, 0
    for size in [*sizes, max(1, len(text))]:
        if rest is None and text[at : at + size]:
            out, rest = watch.split(text[at : at + size])
            passed += out
            at += size
    found = text.find(pattern)
    if found < 0:
        assert (passed + watch.held, rest) == (text, None)
    else:
        end = found if keeps_back else found + len(pattern)
        assert passed == text[:end]
        assert rest == text[end:at]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql://me@/shop?host=/run/pg&port=5433", ("/run/pg/.s.PGSQL.5433", 0)),
        ("postgresql://me:secret@db.example:5433/shop", ("db.example", 5433)),
        ("host=db.example", ("db.example", 5432)),
    ],
)
async def test_a_postgres_url_goes_through_the_proxy(url: str, target: tuple[str, int]) -> None:
    assert postgres_target(url) == target
    async with fault_proxy(*target) as proxy:
        changed = conninfo_to_dict(proxy.postgres_url(url))
        ours = {"host": "127.0.0.1", "port": str(proxy.port)}
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        assert changed == conninfo_to_dict(url) | ours | plain


@pytest.mark.parametrize(
    ("url", "target", "changed"),
    [
        ("redis://u:p@r.example:6380/3", ("r.example", 6380), "redis://u:p@127.0.0.1:{}/3"),
        ("redis://r.example", ("r.example", 6379), "redis://127.0.0.1:{}"),
        ("unix:///run/redis.sock", ("/run/redis.sock", 0), "redis://127.0.0.1:{}"),
    ],
)
async def test_a_redis_url_goes_through_the_proxy(
    url: str, target: tuple[str, int], changed: str
) -> None:
    assert redis_target(url) == target
    async with fault_proxy(*target) as proxy:
        assert proxy.redis_url(url) == changed.format(proxy.port)
