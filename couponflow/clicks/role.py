"""The `clicks` role: batches clicks from their channel into PostgreSQL."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import psycopg
import structlog

from couponflow.clicks.batch_writer import BatchWriter
from couponflow.clicks.partitions import PartitionMissing, Partitions
from couponflow.config import ClicksSettings
from couponflow.kernel.backoff import exponential_backoff
from couponflow.kernel.channel import Channel, Delivery, Subscription
from couponflow.kernel.clock import Clock
from couponflow.kernel.controls import ChannelControls
from couponflow.kernel.crash_points import crash_point
from couponflow.kernel.database import Database, DatabaseAway
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.kernel.pace import Pace
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.messages import Click

NAME = "clicks"
CHECK = "flush:clicks"
PARTITIONS_SECONDS = 600.0
WORTH_ANOTHER_TRY = (DatabaseAway, PartitionMissing, psycopg.OperationalError)
"""OperationalError is a timeout, a deadlock or a full disk."""
_log = structlog.get_logger("couponflow.clicks")


@dataclass(frozen=True, slots=True)
class ClicksParts:
    """What the role is built from; opened by the daemon, which also closes it."""

    settings: ClicksSettings
    consumer: str
    channel: Channel[Click]
    controls: ChannelControls
    database: Database
    health: HealthBoard
    metrics: ChannelCounts
    clock: Clock


def clicks_role(parts: ClicksParts) -> Role:
    return Role(NAME, Stage.WORK, partial(_run, parts))


async def _run(parts: ClicksParts, handle: RoleHandle) -> None:
    """Store batches until the channel is sealed and empty."""
    partitions = Partitions(parts.database, parts.clock, parts.settings.partitions_ahead_days)
    ids = Uuid7Generator()
    writer = BatchWriter(parts.database, partitions, ids, parts.clock, parts.metrics)
    pace = Pace(parts.clock, parts.controls.of(Click.channel).rate_per_second)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_make_partitions, partitions)
        tasks.start_soon(_follow_rate, parts.controls, pace)
        async with parts.channel.subscribe(parts.consumer) as subscription:
            handle.started()
            await _consume(parts, handle, writer, pace, subscription)
        tasks.cancel_scope.cancel()


async def _consume(
    parts: ClicksParts,
    handle: RoleHandle,
    writer: BatchWriter,
    pace: Pace,
    subscription: Subscription[Click],
) -> None:
    settings = parts.settings
    while True:
        await _wait_while_paused(parts, handle)
        stopping = handle.stopping.is_set()
        linger = 0.0 if stopping else settings.flush_seconds
        rows = settings.flush_rows if stopping else min(settings.flush_rows, pace.at_once)
        batch = await subscription.receive(rows, linger)
        if not batch:
            return
        await _keep_pace(parts, handle, pace, len(batch))
        if parts.controls.of(Click.channel).paused and not handle.stopping.is_set():
            await subscription.reject(batch)
            continue
        started = parts.clock.monotonic()
        if not await _write_until_stored(parts, handle, writer, batch):
            await subscription.reject(batch)
            return
        crash_point("clicks.stored")
        await subscription.acknowledge(batch)
        parts.metrics.seconds.observe(parts.clock.monotonic() - started)


async def _wait_while_paused(parts: ClicksParts, handle: RoleHandle) -> None:
    """Wait while an operator has the channel paused; at the end what is on it is stored anyway."""
    if not parts.controls.of(Click.channel).paused:
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when, handle.stopping.wait, tasks.cancel_scope)
        await parts.controls.until_open(Click.channel)
        tasks.cancel_scope.cancel()


async def _keep_pace(parts: ClicksParts, handle: RoleHandle, pace: Pace, clicks: int) -> None:
    """Wait as long as the rate says, or until a pause; at the end everything is stored at once."""
    if pace.rate_per_second is None or handle.stopping.is_set():
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when, handle.stopping.wait, tasks.cancel_scope)
        tasks.start_soon(
            _cancel_when, partial(parts.controls.until_paused, Click.channel), tasks.cancel_scope
        )
        await pace.take(clicks)
        tasks.cancel_scope.cancel()


async def _follow_rate(controls: ChannelControls, pace: Pace) -> None:
    """Heed a changed rate at once, also while a batch waits for the old one."""
    while True:
        pace.rate_per_second = controls.of(Click.channel).rate_per_second
        await controls.changed()


async def _cancel_when(happens: Callable[[], Awaitable[object]], scope: anyio.CancelScope) -> None:
    await happens()
    scope.cancel()


async def _write_until_stored(
    parts: ClicksParts, handle: RoleHandle, writer: BatchWriter, batch: list[Delivery[Click]]
) -> bool:
    """Write a batch, through any outage; False if the role is told to stop during one.

    Then the sender still has the clicks, in its journal, and a quick stop loses nothing.
    """
    clicks = [delivery.message for delivery in batch]
    attempt = max(delivery.attempt for delivery in batch)
    randomness = random.Random()  # noqa: S311 - spreads retries, guards nothing
    for wait in exponential_backoff(0.1, 5.0, randomness):
        try:
            await writer.write(clicks, attempt)
        except WORTH_ANOTHER_TRY as error:
            parts.metrics.retry += len(clicks)
            parts.health.report(CHECK, ok=False, detail=f"clicks wait: {error}")
            _log.warning("clicks not stored yet", clicks=len(clicks), error=str(error))
            if handle.stopping.is_set():
                return False
            with anyio.move_on_after(wait):
                await handle.stopping.wait()
        else:
            parts.health.report(CHECK, ok=True)
            return True
    raise AssertionError("the waits never end")


async def _make_partitions(partitions: Partitions) -> None:
    while True:
        try:
            await partitions.make_ahead()
        except WORTH_ANOTHER_TRY as error:
            _log.warning("partitions not made yet", error=str(error))
            await anyio.sleep(5)
        else:
            await anyio.sleep(PARTITIONS_SECONDS)
