"""Redis forgets, dies, is not there, or holds what others wrote: what is lost is what is stated."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.redis_server import RedisServer, ask
from tests.system.answers import AuditReport
from tests.system.daemon_process import SETTLE_SECONDS, DaemonProcess
from tests.system.load import load, sample_paths
from tests.system.mail import IMPATIENT, quiescent, told_once
from tests.system.traffic import (
    all_is_well,
    everything_arrived,
    nothing_was_lost,
    ready_names,
    traffic,
)
from tests.system.waiting import until

ROUNDS = 3
BURST = 200
ACKNOWLEDGED = {"COUPONFLOW_JOURNAL_CHECKPOINT": "acknowledged"}
EMAIL = '{"type":"email.v1","to":"reader@mail.example","subject":"Hello","text":"from afar"}'
FLUSH_AND_TELL = """
local told = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  for at = 1, #entry[2], 2 do
    if entry[2][at] == 'message' then
      told[#told + 1] = string.match(entry[2][at + 1], '"click_id":"([^"]+)"')
    end
  end
end
redis.call('FLUSHALL')
return table.concat(told, ' ')
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def on(
    redis: RedisServer, database: dict[str, str], settings: dict[str, str] | None = None
) -> dict[str, str]:
    """Settings of a daemon that soon notices what this Redis does."""
    return {
        **IMPATIENT,
        "COUPONFLOW_REDIS_TIMEOUT_SECONDS": "1",
        "REDIS_URL": redis.url,
        **database,
        **(settings or {}),
    }


async def length(redis: RedisServer, stream: str) -> int:
    return int((await ask(redis.port, "XLEN", stream)).removeprefix(":"))


async def stream_holds(redis: RedisServer, stream: str, least: int = 1) -> None:
    async def holds() -> bool:
        return await length(redis, stream) >= least

    await until(holds, seconds=SETTLE_SECONDS)


async def flush(redis: RedisServer) -> None:
    assert await ask(redis.port, "FLUSHALL") == "+OK"


async def die_and_return(redis: RedisServer) -> None:
    await redis.kill()
    await redis.start()


async def drop_streams(redis: RedisServer) -> None:
    await ask(redis.port, "DEL", "queue:emails", "queue:sms")


Loss = Callable[[RedisServer], Awaitable[None]]
LOSSES: dict[str, Loss] = {"flush": flush, "kill": die_and_return, "drop": drop_streams}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
async def test_no_message_of_the_outbox_and_no_acknowledged_click_is_lost(
    var: Path,
    empty_database: dict[str, str],
    stoppable_redis: RedisServer,
    randomness: random.Random,
    loss: Loss,
) -> None:
    environment = on(stoppable_redis, empty_database, ACKNOWLEDGED)
    async with DaemonProcess(var, environment=environment) as daemon:
        async with traffic(daemon, randomness) as seen:
            for _ in range(ROUNDS):
                await seen.sender.send(BURST, batch=BURST)
                await stream_holds(stoppable_redis, "queue:emails")
                await loss(stoppable_redis)
                await seen.more()
        await nothing_was_lost(seen)
        assert "stream lost messages" in daemon.stderr or loss is die_and_return


async def flush_and_tell(redis: RedisServer) -> set[str]:
    """FLUSHALL; which clicks the stream had at that very moment."""
    async with await anyio.connect_tcp("127.0.0.1", redis.port) as stream:
        words = ("EVAL", FLUSH_AND_TELL, "1", "queue:clicks")
        packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        await stream.send(f"*{len(words)}\r\n{packed}".encode())
        answer = BufferedByteReceiveStream(stream)
        size = int((await answer.receive_until(b"\r\n", 64)).removeprefix(b"$"))
        return set((await answer.receive_exactly(size)).decode().split())


@pytest.mark.parametrize("checkpoint", ["handed-over", "acknowledged"])
async def test_of_clicks_a_flush_loses_what_the_stream_held_or_nothing_as_it_is_set(
    var: Path,
    empty_database: dict[str, str],
    stoppable_redis: RedisServer,
    randomness: random.Random,
    checkpoint: str,
) -> None:
    settings = {"COUPONFLOW_JOURNAL_CHECKPOINT": checkpoint}
    environment = on(stoppable_redis, empty_database, settings)
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        # Not as fast as it can: the lost ones must still be in the journal when it is looked at.
        paths = sample_paths(randomness)
        async with load(daemon.redirect_port, paths, pause_seconds=0.02) as log:
            await log.more(100)
            assert (await daemon.command("queue", "pause", "clicks")).code == 0
            await stream_holds(stoppable_redis, "queue:clicks", 100)
            # What is on its way is not lost.
            await daemon.audit()
            held = await flush_and_tell(stoppable_redis)
            await log.more(100)
        assert log.failures == {}
        assert (await daemon.command("queue", "resume", "clicks")).code == 0
        surely = set(log.click_ids) - (held if checkpoint == "handed-over" else set())
        await daemon.stored([*surely])
        await daemon.settled()
        lost = set(log.click_ids) - set(await daemon.stored_click_ids())
        assert len(held) >= 100
        assert lost <= held
        # The test would prove nothing if nothing were in danger.
        assert bool(lost) == (checkpoint == "handed-over")
        await all_is_well(daemon)
        assert await clicks_missed_by_the_audit(daemon) <= lost
        assert bool(await clicks_missed_by_the_audit(daemon)) == bool(lost)


async def clicks_missed_by_the_audit(daemon: DaemonProcess) -> set[str]:
    """The first of the lost clicks, as `couponflow audit` tells them; nothing else may be wrong."""
    result = await daemon.command("audit", "--json")
    report = msgspec.json.decode(result.out, type=AuditReport)
    wrong = [finding for finding in report.findings if not finding.ok]
    assert {finding.name for finding in wrong} <= {"journalled-clicks-are-kept"}
    return {offender["click_id"] for finding in wrong for offender in finding.offenders}


async def test_a_daemon_starts_without_redis_and_delivers_when_it_comes(
    var: Path,
    empty_database: dict[str, str],
    stoppable_redis: RedisServer,
    randomness: random.Random,
) -> None:
    await stoppable_redis.stop()
    async with DaemonProcess(var, environment=on(stoppable_redis, empty_database)) as daemon:
        async with traffic(daemon, randomness) as seen:
            await seen.more(100, 30)
            await ready_names(daemon, "redis")
            assert await daemon.rows("select count(*) from notifications") == [(0,)]
            assert await daemon.count_rows() == 0
            await stoppable_redis.start()
            await seen.more()
        await nothing_was_lost(seen)


async def test_redis_away_and_the_daemon_killed_meanwhile_loses_nothing(
    var: Path,
    empty_database: dict[str, str],
    stoppable_redis: RedisServer,
    randomness: random.Random,
) -> None:
    environment = on(stoppable_redis, empty_database, ACKNOWLEDGED)
    async with DaemonProcess(var, environment=environment) as daemon:
        async with traffic(daemon, randomness) as seen:
            await seen.more()
            await stoppable_redis.kill()
            await ready_names(daemon, "redis")
            await seen.more()
            await daemon.kill()
            await daemon.start()
            await seen.more()
            await stoppable_redis.start()
            await seen.more()
        assert set(seen.log.statuses) == {302}
        await everything_arrived(seen)


ILL_FORMED = {
    ("subject", "Hello"): "no field `message`",
    ("message", "Hello"): "is not the JSON of a message",
    ("message", '{"type":"sms.v1","to":"+919800000000","text":"Hello"}'): "'sms.v1'",
    ("message", EMAIL.replace("@", " at ")): "$.to",
    ("message", EMAIL, "id", "seven"): "`id` is not a UUID",
    ("message", EMAIL, "attempt", "-1"): "`attempt` is not a whole number",
}


async def test_what_another_program_adds_is_delivered_or_dead_with_the_reason(
    var: Path, empty_database: dict[str, str], stoppable_redis: RedisServer
) -> None:
    port = stoppable_redis.port
    # Before any daemon made the group.
    await ask(port, "XADD", "queue:emails", "*", "message", EMAIL)
    async with DaemonProcess(var, environment=on(stoppable_redis, empty_database)) as daemon:
        await daemon.start()
        for fields in ILL_FORMED:
            await ask(port, "XADD", "queue:emails", "*", *fields)
        await ask(port, "XADD", "queue:clicks", "*", "message", EMAIL)
        await ask(port, "XADD", "queue:emails", "*", "message", EMAIL, "trace", "unknown")

        async def all_are_settled() -> bool:
            lengths = [await length(stoppable_redis, f"queue:{n}") for n in ("emails", "clicks")]
            return lengths == [0, 0]

        with daemon.shown_on_failure(SETTLE_SECONDS):
            await until(all_are_settled)
        told = await daemon.rows("select recipient, body from notifications")
        assert told == [("reader@mail.example", "from afar")] * 2
        letters = await daemon.rows(
            "select channel, reason, message from dead_letters order by channel desc, id"
        )
        assert len(letters) == len(ILL_FORMED) + 1
        for (channel, reason, _), expected in zip(letters, ILL_FORMED.values(), strict=False):
            assert (channel, str(reason)[:17]) == ("emails", "ill-formed entry:")
            assert expected in str(reason)
        assert letters[0][2] == {"subject": "Hello"}
        assert "Hello" in str(letters[1][2])
        assert letters[-1][0] == "clicks"
        await all_is_well(daemon)
        await daemon.audit()


async def test_a_message_added_twice_under_one_id_is_told_once(
    var: Path, empty_database: dict[str, str], stoppable_redis: RedisServer
) -> None:
    one, other = "018f3a5e-0000-7000-8000-000000000001", "018f3a5e-0000-7000-8000-000000000002"
    async with DaemonProcess(var, environment=on(stoppable_redis, empty_database)) as daemon:
        await daemon.start()
        for message_id in (one, one, other, one, other):
            await ask(
                stoppable_redis.port,
                "XADD",
                "queue:emails",
                "*",
                "message",
                EMAIL,
                "id",
                message_id,
            )

        async def all_are_settled() -> bool:
            return await length(stoppable_redis, "queue:emails") == 0

        await until(all_are_settled, seconds=SETTLE_SECONDS)
        await quiescent(daemon)
        await told_once(daemon, [one, other])
        assert await daemon.rows("select count(*) from notifications") == [(2,)]
        # Also when the first is long done.
        await ask(stoppable_redis.port, "XADD", "queue:emails", "*", "message", EMAIL, "id", one)
        await until(all_are_settled, seconds=SETTLE_SECONDS)
        assert await daemon.rows("select count(*) from notifications") == [(2,)]
        await daemon.audit()
