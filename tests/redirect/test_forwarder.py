from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from couponflow.config import JournalSettings
from couponflow.kernel.channel import Subscription
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.journal import Journal, open_journal, read_segments
from couponflow.messages import Click
from couponflow.redirect.forwarder import Forwarder
from couponflow.redirect.metrics import RedirectMetrics
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, make_click, until

SETTINGS = JournalSettings(segment_bytes=65_536, max_bytes=16 * 65_536)


class Forwarded:
    """A forwarder that runs between a journal and a channel."""

    def __init__(self, journal: Journal, folder: Path, capacity: int = 10_000) -> None:
        self.journal = journal
        self.set_aside = folder / "set-aside"
        self.channel: MemoryChannel[Click] = MemoryChannel("clicks", capacity, ManualClock())
        self.metrics = RedirectMetrics(journal)
        self.stopping = anyio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Subscription[Click]]:
        """The forwarder and a consumer; the block must end with everything handed over."""
        forwarder = Forwarder(self.journal, self.channel, self.metrics, self.set_aside)
        with anyio.fail_after(PATIENCE_SECONDS):
            async with (
                self.channel.subscribe("test") as subscription,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(forwarder.run, self.stopping)
                yield subscription
                self.stopping.set()

    async def run_until_sent(self, count: int) -> None:
        """Run it with nobody to consume, and cut it off when so many clicks are sent."""
        forwarder = Forwarder(self.journal, self.channel, self.metrics, self.set_aside)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forwarder.run, self.stopping)
            with anyio.fail_after(PATIENCE_SECONDS):
                while (await self.channel.statistics()).published < count:  # noqa: ASYNC110
                    await anyio.sleep(POLL_SECONDS)
            tasks.cancel_scope.cancel()


def append(journal: Journal, *numbers: int) -> None:
    for number in numbers:
        journal.append(msgspec.json.encode(make_click(number)))


def waiting(folder: Path) -> int:
    """Records in the journal that are still its own."""
    return sum(record.beyond_checkpoint for record in read_segments(folder))


async def receive(subscription: Subscription[Click], count: int) -> list[Click]:
    received: list[Click] = []
    while len(received) < count:
        deliveries = await subscription.receive(count - len(received), 0.0)
        received += [delivery.message for delivery in deliveries]
        await subscription.acknowledge(deliveries)
    return received


async def test_clicks_arrive_in_order_and_leave_the_journal(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        forwarded = Forwarded(journal, tmp_path)
        async with forwarded.running() as subscription:
            append(journal, *range(1, 501))
            assert await receive(subscription, 500) == [make_click(n) for n in range(1, 501)]
            append(journal, 501)
            assert await receive(subscription, 1) == [make_click(501)]
        assert waiting(tmp_path) == 0
        assert not journal.backlog


async def test_the_checkpoint_moves_only_when_a_batch_is_acknowledged(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        forwarded = Forwarded(journal, tmp_path)
        append(journal, 1, 2)
        async with forwarded.running() as subscription:
            deliveries = await subscription.receive(10, 0.0)
            assert len(deliveries) == 2
            await subscription.acknowledge(deliveries[:1])
            await anyio.wait_all_tasks_blocked()
            assert waiting(tmp_path) == 2
            await subscription.acknowledge(deliveries[1:])
            await until(lambda: waiting(tmp_path) == 0)


async def test_a_later_batch_does_not_take_the_checkpoint_past_an_earlier_one(
    tmp_path: Path,
) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        forwarded = Forwarded(journal, tmp_path)
        async with forwarded.running() as subscription:
            append(journal, 1)
            first = await subscription.receive(1, 0.0)
            append(journal, 2)
            second = await subscription.receive(1, 0.0)
            await subscription.acknowledge(second)
            await anyio.wait_all_tasks_blocked()
            assert waiting(tmp_path) == 2
            await subscription.acknowledge(first)
            await until(lambda: waiting(tmp_path) == 0)


async def test_what_was_not_acknowledged_is_sent_again_after_a_restart(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, 1, 2, 3)
        await Forwarded(journal, tmp_path).run_until_sent(3)
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        async with Forwarded(journal, tmp_path).running() as subscription:
            assert await receive(subscription, 3) == [make_click(n) for n in (1, 2, 3)]
    assert waiting(tmp_path) == 0


async def test_a_forwarder_begun_again_within_the_process_sends_from_the_checkpoint(
    tmp_path: Path,
) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, 1, 2)
        await Forwarded(journal, tmp_path).run_until_sent(2)
        async with Forwarded(journal, tmp_path).running() as subscription:
            assert await receive(subscription, 2) == [make_click(1), make_click(2)]


@pytest.mark.parametrize("bad", [b"{}", b"not json", b'{"type":"click.v2"}', b"\xff\x00"])
async def test_a_record_that_is_no_click_is_set_aside_and_passed_over(
    tmp_path: Path, bad: bytes
) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, 1)
        journal.append(bad)
        append(journal, 2)
        forwarded = Forwarded(journal, tmp_path)
        async with forwarded.running() as subscription:
            assert await receive(subscription, 2) == [make_click(1), make_click(2)]
        assert forwarded.metrics.undecodable == 1
        assert waiting(tmp_path) == 0
    assert kept(forwarded) == [bad]


def kept(forwarded: Forwarded) -> list[bytes]:
    return sorted(path.read_bytes() for path in forwarded.set_aside.iterdir())


async def test_a_record_is_set_aside_before_the_checkpoint_passes_it_and_once_in_a_replay(
    tmp_path: Path,
) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, 1)
        journal.append(b"bad")
        journal.append(b"worse")
        for _ in range(2):
            forwarded = Forwarded(journal, tmp_path)
            await forwarded.run_until_sent(1)
            assert (kept(forwarded), waiting(tmp_path)) == ([b"bad", b"worse"], 3)


async def test_a_record_that_cannot_be_set_aside_is_logged_in_full_and_holds_up_nothing(
    tmp_path: Path,
) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        (tmp_path / "set-aside").write_text("no folder")
        journal.append(b"bad" * 10_000)
        append(journal, 1)
        forwarded = Forwarded(journal, tmp_path)
        with capture_logs() as logs:
            async with forwarded.running() as subscription:
                assert await receive(subscription, 1) == [make_click(1)]
    assert [entry["record"] for entry in logs] == [b"bad" * 10_000]


async def test_a_channel_smaller_than_a_batch_is_given_smaller_ones(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, *range(1, 251))
        forwarded = Forwarded(journal, tmp_path, capacity=100)
        async with forwarded.running() as subscription:
            assert len(await receive(subscription, 250)) == 250
        assert waiting(tmp_path) == 0


async def test_nothing_but_bad_records_does_not_stop_it(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        journal.append(b"bad")
        forwarded = Forwarded(journal, tmp_path)
        async with forwarded.running() as subscription:
            await until(lambda: waiting(tmp_path) == 0)
            append(journal, 1)
            assert await receive(subscription, 1) == [make_click(1)]


async def test_a_full_channel_leaves_the_rest_in_the_journal(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, *range(1, 1001))
        forwarded = Forwarded(journal, tmp_path, capacity=300)
        async with forwarded.running() as subscription:
            await anyio.wait_all_tasks_blocked()
            statistics = await forwarded.channel.statistics()
            assert statistics.published <= 300
            assert waiting(tmp_path) == 1000
            assert await receive(subscription, 1000) == [make_click(n) for n in range(1, 1001)]


async def test_told_to_stop_it_hands_over_what_is_left_first(tmp_path: Path) -> None:
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        append(journal, *range(1, 701))
        forwarded = Forwarded(journal, tmp_path)
        forwarded.stopping.set()
        async with forwarded.running() as subscription:
            assert len(await receive(subscription, 700)) == 700
        assert waiting(tmp_path) == 0
