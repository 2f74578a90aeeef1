"""`couponflow queue`: looking at channels and steering them."""

import math
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import httpx2
import msgspec
from msgspec import UNSET, UnsetType

from couponflow.admin.submissions import message_types_of
from couponflow.commands.columns import aligned
from couponflow.commands.operator import operator
from couponflow.commands.support import (
    WRONG_USAGE,
    err,
    fail,
    out,
    print_json,
    read_settings,
    run_async,
)
from couponflow.config import Settings
from couponflow.config_rules import parse_bind
from couponflow.kernel.api import ProblemError
from couponflow.kernel.channel import ChannelStatistics
from couponflow.kernel.controls import ChannelControl, ControlRefused, set_control
from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.dead_letters import count_by_channel as count_dead_letters
from couponflow.kernel.http import Listener
from couponflow.kernel.ops import NO_ROWS, QueueState
from couponflow.kernel.outbox_rows import OutboxCounts, count_by_channel
from couponflow.kernel.postgres import DatabaseMissing, SchemaNotCurrent, open_unchanged_postgres
from couponflow.messages import CHANNELS

N = TypeVar("N", int, float)

_DEADLINE_SECONDS = 5.0


class _Answer(msgspec.Struct):
    channels: dict[str, QueueState]


class Stored(msgspec.Struct, frozen=True):
    """What PostgreSQL knows of the channels."""

    outbox: dict[str, OutboxCounts]
    dead_letters: dict[str, int]


class ChannelShown(msgspec.Struct, frozen=True):
    """A channel as far as it could be seen; null where nobody answered."""

    statistics: ChannelStatistics | None
    dead_letters: int
    outbox: OutboxCounts | None


class _DaemonSilent(Exception):
    """No daemon answered; the text says where one was looked for."""


def queue_stats_command(config: Path | None, *, as_json: bool) -> None:
    settings = read_settings(config, quiet=True)
    stored, database_trouble = run_async(partial(_stored, settings))
    daemon: dict[str, QueueState] = {}
    try:
        daemon = _ask_daemon(settings)
    except _DaemonSilent as error:
        if stored is None:
            fail(str(error))
        _warn(str(error))
    if stored is None:
        _warn(f"the outbox is not shown: {database_trouble}")
    channels = _merged(daemon, stored)
    if as_json:
        print_json({"channels": channels})
    else:
        _show(channels)


def _warn(text: str) -> None:
    err.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)


async def _stored(settings: Settings) -> tuple[Stored | None, str]:
    try:
        async with (
            open_unchanged_postgres(settings) as database,
            database.connection() as connection,
        ):
            outbox = await count_by_channel(connection)
            return Stored(outbox, await count_dead_letters(connection)), ""
    except (DatabaseAway, DatabaseMissing, SchemaNotCurrent) as error:
        return None, str(error)


def _ask_daemon(settings: Settings) -> dict[str, QueueState]:
    host, port = parse_bind(settings.ops.bind)
    url = Listener(host, port, settings.ops.server).local_url
    try:
        response = httpx2.get(f"{url}/api/v1/queue/stats", timeout=_DEADLINE_SECONDS, verify=False)
        return msgspec.json.decode(response.raise_for_status().content, type=_Answer).channels
    except (httpx2.HTTPError, msgspec.DecodeError) as error:
        raise _DaemonSilent(
            f"no daemon answers on {url} ({error or type(error).__name__}). Channels in memory "
            "live in the daemon: start it with `couponflow run`, or set [ops] bind to where it is."
        ) from error


def _merged(daemon: dict[str, QueueState], stored: Stored | None) -> dict[str, ChannelShown]:
    names = {*daemon, *(stored.outbox if stored else ()), *(stored.dead_letters if stored else ())}
    shown: dict[str, ChannelShown] = {}
    for name in sorted(names):
        state = daemon.get(name)
        dead_letters = state.dead_letters if state else 0
        if stored is not None:
            dead_letters = stored.dead_letters.get(name, 0)
        shown[name] = ChannelShown(
            statistics=state.statistics if state else None,
            dead_letters=dead_letters,
            outbox=stored.outbox.get(name, NO_ROWS) if stored else None,
        )
    return shown


def _show(channels: dict[str, ChannelShown]) -> None:
    """Two narrow tables, as one would not fit into 80 columns."""
    _print_table(
        ("channel", "waiting", "in flight", "oldest", "done", "rejected", "dead"),
        [
            (name, *_channel_cells(channel.statistics), f"{channel.dead_letters:,}")
            for name, channel in channels.items()
        ],
    )
    outboxes = {name: channel.outbox for name, channel in channels.items() if channel.outbox}
    if outboxes:
        out.print()
        _print_table(
            ("outbox", "due", "oldest due", "later", "leased", "streamed"),
            [(name, *_outbox_cells(counts)) for name, counts in outboxes.items()],
        )


def _channel_cells(numbers: ChannelStatistics | None) -> tuple[str, ...]:
    if numbers is None:
        return ("-",) * 5
    return (
        f"{numbers.depth:,}",
        f"{numbers.in_flight:,}",
        f"{math.ceil(numbers.oldest_seconds):,} s",
        f"{numbers.acknowledged:,}",
        f"{numbers.rejected:,}",
    )


def _outbox_cells(counts: OutboxCounts) -> tuple[str, ...]:
    return (
        f"{counts.due:,}",
        f"{math.ceil(counts.oldest_due_seconds):,} s",
        f"{counts.later:,}",
        f"{counts.leased:,}",
        f"{counts.streamed:,}",
    )


def _print_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for line in aligned(headings, rows, numbers=headings[1:]):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def queue_control_command(
    config: Path | None,
    channel: str,
    *,
    paused: bool | None,
    rate_per_second: float | Literal["off"] | None,
    concurrency: int | Literal["off"] | None,
    as_json: bool,
) -> None:
    """`queue pause`, `queue resume` and `queue limit`: change what is given, leave what is None."""
    settings = read_settings(config, quiet=True)
    try:
        message_types_of(channel, CHANNELS)
    except ProblemError as error:
        fail(error.detail, WRONG_USAGE)

    async def change() -> ChannelControl:
        async with (
            open_unchanged_postgres(settings) as database,
            database.transaction() as connection,
        ):
            try:
                return await set_control(
                    connection,
                    channel,
                    paused=paused,
                    rate_per_second=_limit(rate_per_second),
                    concurrency=_limit(concurrency),
                    actor=operator(),
                )
            except ControlRefused as error:
                fail(str(error), WRONG_USAGE)

    control = run_async(change)
    if as_json:
        print_json({"channel": channel, **msgspec.structs.asdict(control)})
        return
    rate, at_once = control.rate_per_second, control.concurrency
    out.print(
        f"{channel} {'is paused' if control.paused else 'runs'}, "
        f"{'without a rate limit' if rate is None else f'at most {rate:g} a second'}, "
        f"{'as many at once as the settings say' if at_once is None else f'{at_once} at once'}",
        highlight=False,
        soft_wrap=True,
    )


def _limit(given: N | Literal["off"] | None) -> N | UnsetType | None:
    """As `set_control` takes it: unset leaves a limit as it is, None takes it away."""
    if given is None:
        return UNSET
    return None if given == "off" else given
