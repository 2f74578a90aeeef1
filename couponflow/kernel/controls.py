"""What operators say of a channel at run time: paused or not, how fast, how much at once.

It is said once, in the table `channel_controls`, and holds for every daemon of the installation:
each mirrors the table in memory.
"""

import math
import random

import anyio
import msgspec
import psycopg
import structlog
from msgspec import UNSET, UnsetType

from couponflow.kernel import audit_log
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.database import Connection, Database, DatabaseAway, load_queries
from couponflow.messages import Click

NOTIFICATION = "couponflow_controls"
POLL_SECONDS = 5.0
"""How late a change is seen when its notification is lost."""
_FIRST_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 2.0
_CONCURRENCY_MAX = 2**31 - 1

_queries = load_queries("controls")
_log = structlog.get_logger("couponflow.controls")


class ControlRefused(ValueError):
    """What was said of a channel makes no sense; the text says why, and nothing was changed."""


class ChannelControl(msgspec.Struct, frozen=True):
    """What holds for one channel in each daemon; the default is that nobody said anything."""

    paused: bool = False
    """Nothing more is begun; what is being worked on is finished."""
    rate_per_second: float | None = None
    """Messages begun in a second in each daemon; None is no limit."""
    concurrency: int | None = None
    """Messages worked on at once in each daemon; None leaves it to the settings."""


class ChannelControls:
    """A mirror of `channel_controls` in memory, kept up by `run`.

    While PostgreSQL is away what was last seen holds.
    """

    def __init__(
        self, database: Database, randomness: random.Random, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._database = database
        self._randomness = randomness
        self._poll_seconds = poll_seconds
        self._controls: dict[str, ChannelControl] = {}
        self._change = anyio.Event()
        self._stale = False
        self.loaded = anyio.Event()
        """Set once the table has been read; until then every channel has the default."""

    def of(self, channel: str) -> ChannelControl:
        return self._controls.get(channel, ChannelControl())

    async def run(self) -> None:
        """Mirror until cancelled, through any outage and any error of PostgreSQL."""
        waits = exponential_backoff(_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, self._randomness)
        while True:
            try:
                async with self._database.listen(NOTIFICATION) as notifications:
                    while True:
                        await self._load()
                        waits = exponential_backoff(
                            _FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, self._randomness
                        )
                        await notifications.wait(self._poll_seconds)
            except (DatabaseAway, psycopg.Error) as error:
                if not self._stale:
                    self._stale = True
                    _log.warning("channel controls cannot be read", error=str(error))
                await anyio.sleep(next(waits))

    async def changed(self) -> None:
        """Return at the next change of any channel, or when the table is read for the first time.

        Nothing is missed between `of` and the call as long as nothing is awaited between them.
        """
        await self._change.wait()

    async def until_open(self, channel: str) -> None:
        """Return once the channel is known not to be paused.

        Before the table was read nobody knows, so a paused channel stays paused when a daemon
        starts while PostgreSQL is away.
        """
        while not self.loaded.is_set() or self.of(channel).paused:
            await self.changed()

    async def until_paused(self, channel: str) -> None:
        """Return once the channel is paused."""
        while not self.of(channel).paused:
            await self.changed()

    async def _load(self) -> None:
        async with self._database.connection() as connection:
            controls = await read_controls(connection)
        if self._stale:
            self._stale = False
            _log.info("channel controls are read again")
        self._take(controls)

    def _take(self, controls: dict[str, ChannelControl]) -> None:
        before = {channel: self.of(channel) for channel in self._controls.keys() | controls.keys()}
        self._controls = controls
        changed = [channel for channel in sorted(before) if before[channel] != self.of(channel)]
        for channel in changed:
            _log.info(
                "channel controlled", channel=channel, **msgspec.to_builtins(self.of(channel))
            )
        if changed or not self.loaded.is_set():
            self.loaded.set()
            self._change.set()
            self._change = anyio.Event()


async def read_controls(connection: Connection) -> dict[str, ChannelControl]:
    """What operators have said, by channel."""
    cursor = await connection.execute(_queries["every_control"])
    return {row[0]: ChannelControl(*row[1:]) for row in await cursor.fetchall()}


async def set_control(
    connection: Connection,
    channel: str,
    *,
    paused: bool | None = None,
    rate_per_second: float | UnsetType | None = UNSET,
    concurrency: int | UnsetType | None = UNSET,
    actor: str,
) -> ChannelControl:
    """Change what is given, leave the rest, and write to `audit_logs` who did so.

    All in the caller's transaction, at whose commit every daemon hears of it. `actor` is who asked
    for it. Raises `ControlRefused` for a limit that is not positive or that
    the channel does not heed, and when nothing is given.
    """
    _require_valid(paused, rate_per_second, concurrency)
    if channel == Click.channel and isinstance(concurrency, int):
        raise ControlRefused(
            f"the channel {channel} has no concurrency: one consumer in each daemon stores whole "
            "batches; give rate_per_second to slow it down"
        )
    held = {"channel": channel, "actor": actor}
    cursor = await connection.execute(_queries["lock_control"], held)
    [row] = await cursor.fetchall()
    before = ChannelControl(*row)
    after = ChannelControl(
        paused=before.paused if paused is None else paused,
        rate_per_second=before.rate_per_second if rate_per_second is UNSET else rate_per_second,
        concurrency=before.concurrency if concurrency is UNSET else concurrency,
    )
    await connection.execute(_queries["change_control"], held | msgspec.structs.asdict(after))
    await audit_log.record(
        connection,
        actor=actor,
        action=_action(paused),
        subject=channel,
        details={"before": before, "after": after},
    )
    return after


def _require_valid(
    paused: bool | None,
    rate_per_second: float | UnsetType | None,
    concurrency: int | UnsetType | None,
) -> None:
    if paused is None and rate_per_second is UNSET and concurrency is UNSET:
        raise ControlRefused("nothing to change: give paused, rate_per_second or concurrency")
    if isinstance(rate_per_second, int | float) and not 0 < rate_per_second < math.inf:
        raise ControlRefused(
            f"rate_per_second must be a number above 0, not {rate_per_second}; "
            "pause the channel to stop it, or give null for no limit"
        )
    if isinstance(concurrency, int) and not 0 < concurrency <= _CONCURRENCY_MAX:
        raise ControlRefused(
            f"concurrency must be a whole number from 1 to {_CONCURRENCY_MAX}, not {concurrency}; "
            "pause the channel to stop it, or give null to leave it to the settings"
        )


def _action(paused: bool | None) -> str:
    match paused:
        case True:
            return "channel.pause"
        case False:
            return "channel.resume"
        case None:
            return "channel.limit"
