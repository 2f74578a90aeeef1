"""How a fault proxy passes bytes on: pairs of sockets, and what goes wrong between them.

Plain sockets and not streams, because a fault must begin at once, exactly between two bytes, and a
reset must be a reset.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, assert_never

import anyio

Direction = Literal["to_server", "to_client"]
Address = str | tuple[str, int]
"""The path of a unix socket, or a host and a port."""

_CHUNK_BYTES = 65_536
_THROTTLED_PIECES_PER_SECOND = 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close sends RST


@dataclass(frozen=True, slots=True)
class Mode:
    """What happens to every chunk and to every new connection."""

    stalls: bool = False
    resets: bool = False
    delay_seconds: float = 0.0
    bytes_per_second: int = 0


@dataclass(slots=True)
class Trigger:
    """What to look for in one direction, and what to do about it."""

    direction: Direction
    action: Literal["cut", "stall", "freeze"]
    count_left: int = 1
    pattern: bytes = b""
    keeps_back: bool = False
    """The pattern itself does not get through."""
    after_bytes: int = 0
    """Without a pattern: how many bytes of a connection get through."""


class Conditions:
    """The state of the network between all clients and the server."""

    def __init__(self) -> None:
        self.mode = Mode()
        self.seen = anyio.Event()
        self.cuts = 0
        self.healed = anyio.Event()
        self._trigger: Trigger | None = None
        self._changed = anyio.Event()
        self._receiving: set[anyio.CancelScope] = set()

    def set_mode(self, mode: Mode) -> None:
        self.mode = mode
        self._tell_change()

    def arm(self, trigger: Trigger | None) -> None:
        self._trigger = trigger
        if trigger is not None:
            self.seen = anyio.Event()
        self._tell_change()

    def heal(self) -> None:
        self.healed.set()
        self.healed = anyio.Event()
        self.arm(None)

    def trigger_for(self, direction: Direction) -> Trigger | None:
        trigger = self._trigger
        return trigger if trigger is not None and trigger.direction == direction else None

    def use_up(self, trigger: Trigger) -> None:
        """Note that a trigger was set off; it may have been its last time."""
        trigger.count_left -= 1
        if not trigger.count_left:
            self._trigger = None
        match trigger.action:
            case "cut":
                self.cuts += 1
            case "stall":
                self.mode = Mode(stalls=True)
            case "freeze":
                pass
            case never:
                assert_never(never)
        self._tell_change()

    async def change(self) -> None:
        await self._changed.wait()

    async def let_through(self) -> None:
        """Return when a chunk has been held up as long as it must be."""
        if self.mode.delay_seconds:
            await self._pause(self.mode.delay_seconds)
        await self.while_stalled()

    async def while_stalled(self) -> None:
        while self.mode.stalls:
            await self._changed.wait()

    async def keep_rate(self, sent_bytes: int) -> None:
        """Return when so many bytes have taken the time that a throttle wants of them."""
        if self.mode.bytes_per_second:
            await self._pause(sent_bytes / self.mode.bytes_per_second)

    def piece_bytes(self) -> int:
        """How many bytes go on at once."""
        rate = self.mode.bytes_per_second
        return max(1, rate // _THROTTLED_PIECES_PER_SECOND) if rate else _CHUNK_BYTES

    @contextmanager
    def until_changed(self) -> Iterator[anyio.CancelScope]:
        """Cancel the block at the next change."""
        with anyio.CancelScope() as scope:
            self._receiving.add(scope)
            try:
                yield scope
            finally:
                self._receiving.discard(scope)

    async def _pause(self, seconds: float) -> None:
        """Let time pass, unless something changes."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        for scope in self._receiving:
            scope.cancel()


class Watch:
    """One direction of one connection, as a trigger sees it; a pattern may come in pieces."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self.held = b""
        """Bytes that may be the pattern's beginning and therefore do not get through yet."""
        self._passed_tail = b""
        self._passed_bytes = 0

    def split(self, chunk: bytes) -> tuple[bytes, bytes | None]:
        """Return what gets through, and what does not if this chunk sets the trigger off."""
        pattern = self.trigger.pattern
        if not pattern:
            left = self.trigger.after_bytes - self._passed_bytes
            self._passed_bytes += len(chunk)
            return (chunk, None) if len(chunk) < left else (chunk[:left], chunk[left:])
        before = len(self._passed_tail)
        text = self._passed_tail + self.held + chunk
        at = text.find(pattern)
        if at >= 0:
            end = at if self.trigger.keeps_back else at + len(pattern)
            return text[before:end], text[end:]
        if self.trigger.keeps_back:
            held_from = len(text) - _length_begun(text, pattern)
            self.held = text[held_from:]
            return text[:held_from], None
        self._passed_tail = text[max(0, len(text) - len(pattern) + 1) :]
        return text[before:], None


def _length_begun(text: bytes, pattern: bytes) -> int:
    """How many bytes at the end of the text are the beginning of the pattern."""
    longest = min(len(pattern) - 1, len(text))
    return next(size for size in range(longest, -1, -1) if text.endswith(pattern[:size]))


class Relay:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, conditions: Conditions, client: socket.socket) -> None:
        self.is_cut = False
        """A trigger was set off: nothing gets through any more, in either direction."""
        self.thawed = anyio.Event()
        """Until then a trigger has frozen this connection alone."""
        self.thawed.set()
        self._conditions = conditions
        self._scope = anyio.CancelScope()
        self._client = client
        self._server: socket.socket | None = None

    async def run(self, address: Address) -> None:
        with self._scope:
            await self._conditions.let_through()
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            self._server = server = socket.socket(family)
            try:
                await _dial(server, address)
            except (OSError, anyio.ClosedResourceError):
                self.end(reset=True)  # the client must not find a server here
                return
            async with anyio.create_task_group() as group:
                group.start_soon(_Pump(self, self._client, server, "to_server").run)
                group.start_soon(_Pump(self, server, self._client, "to_client").run)

    def end(self, *, reset: bool) -> None:
        for each in (self._client, self._server):
            if each is not None:
                close(each, reset=reset)
        self._scope.cancel()

    @property
    def conditions(self) -> Conditions:
        return self._conditions


class _Pump:
    """One direction of a relay; it holds one chunk at most."""

    def __init__(
        self, relay: Relay, source: socket.socket, sink: socket.socket, direction: Direction
    ) -> None:
        self._relay = relay
        self._conditions = relay.conditions
        self._source = source
        self._sink = sink
        self._direction: Direction = direction
        self._watch: Watch | None = None

    async def run(self) -> None:
        try:
            while (chunk := await self._receive()) is not None:
                await self._forward(chunk)
            await self._conditions.let_through()
            await self._relay.thawed.wait()
            if self._watch is not None:
                await self._send_at_pace(self._watch.held)
            self._sink.shutdown(socket.SHUT_WR)
        except (OSError, anyio.ClosedResourceError):
            self._relay.end(reset=False)

    async def _receive(self) -> bytes | None:
        """Return what came, an empty chunk to let go of what is held, or nothing at the end."""
        if self._watch is None or not self._watch.held:
            return await _receive(self._source) or None
        while self._is_watched():
            with self._conditions.until_changed():
                return await _receive(self._source) or None
        return b""

    def _is_watched(self) -> bool:
        trigger = self._conditions.trigger_for(self._direction)
        return self._watch is not None and self._watch.trigger is trigger

    async def _forward(self, chunk: bytes) -> None:
        await self._conditions.let_through()
        await self._relay.thawed.wait()
        if self._watch is not None and not self._is_watched():
            chunk, self._watch = self._watch.held + chunk, None
        trigger = self._conditions.trigger_for(self._direction)
        if trigger is None:
            await self._send_at_pace(chunk)
            return
        self._watch = self._watch or Watch(trigger)
        out, rest = self._watch.split(chunk)
        if rest is None:
            await self._send_at_pace(out)
        else:
            await self._set_off(trigger, out, rest)

    async def _set_off(self, trigger: Trigger, out: bytes, rest: bytes) -> None:
        # Nothing comes back after this, although what set it off has yet to be sent.
        self._watch = None
        self._relay.is_cut = trigger.action == "cut"
        if trigger.action == "freeze":
            self._relay.thawed = self._conditions.healed
        seen = self._conditions.seen
        self._conditions.use_up(trigger)
        await _send(self._sink, out)
        if self._relay.is_cut:
            self._relay.end(reset=False)
        seen.set()
        await self._conditions.let_through()
        await self._send_at_pace(rest)

    async def _send_at_pace(self, chunk: bytes) -> None:
        while chunk:
            await self._conditions.while_stalled()
            await self._relay.thawed.wait()
            if self._relay.is_cut:
                return
            size = self._conditions.piece_bytes()
            piece, chunk = chunk[:size], chunk[size:]
            await _send(self._sink, piece)
            await self._conditions.keep_rate(len(piece))


def close(each: socket.socket, *, reset: bool = False) -> None:
    """Close a socket, and wake whoever waits for it; again changes nothing."""
    if each.fileno() < 0:
        return
    if reset and each.family == socket.AF_INET:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    anyio.notify_closing(each)
    each.close()


async def _dial(server: socket.socket, address: Address) -> None:
    server.setblocking(False)
    try:
        server.connect(address)
    except BlockingIOError:
        await anyio.wait_writable(server)
        error = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "the server of a fault proxy cannot be reached") from None


async def _receive(source: socket.socket) -> bytes:
    while True:
        try:
            return source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(source)


async def _send(sink: socket.socket, data: bytes) -> None:
    unsent = memoryview(data)
    while unsent:
        try:
            unsent = unsent[sink.send(unsent) :]
        except BlockingIOError:
            await anyio.wait_writable(sink)
