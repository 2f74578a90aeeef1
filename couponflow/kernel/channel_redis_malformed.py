"""Entries that are no messages: told to somebody who keeps them, and only then deleted."""

from collections.abc import Awaitable, Callable, Mapping

import structlog

from couponflow.kernel.channel_redis_acknowledging import Acknowledger
from couponflow.kernel.channel_redis_codec import Malformed
from couponflow.kernel.channel_redis_server import Patience
from couponflow.kernel.channel_redis_waiting import WaitingRoom
from couponflow.kernel.crash_points import crash_point

_log = structlog.get_logger("couponflow.channel")


class MalformedDesk:
    """Malformed entries read here; the stream, where they stay until they are kept, bounds them."""

    def __init__(
        self, acknowledger: Acknowledger, on_malformed: Callable[[Malformed], Awaitable[None]]
    ) -> None:
        self._acknowledger = acknowledger
        self._on_malformed = on_malformed
        self._room = WaitingRoom()
        self._entries: dict[str, Malformed] = {}

    @property
    def entries(self) -> Mapping[str, Malformed]:
        return self._entries

    def add(self, malformed: Malformed) -> None:
        self._entries[malformed.entry_id] = malformed
        self._room.look_again()

    async def run(self) -> None:
        patience = Patience()
        while True:
            await self._room.until(lambda: bool(self._entries))
            entry_id, malformed = next(iter(self._entries.items()))
            try:
                await self._on_malformed(malformed)
            except Exception as error:  # noqa: BLE001 - it stays in the stream until it is kept
                _log.warning(
                    "malformed_entry_not_kept",
                    channel=malformed.channel,
                    entry_id=entry_id,
                    error=str(error),
                )
                # The others need not wait for this one.
                self._entries[entry_id] = self._entries.pop(entry_id)
                await patience.wait()
                continue
            patience.over()
            crash_point("channel.malformed")
            self._acknowledger.add({entry_id: ""})
            del self._entries[entry_id]
