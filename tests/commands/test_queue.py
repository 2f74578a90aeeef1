import getpass
import re
from functools import partial
from pathlib import Path

import pytest

from couponflow.kernel.channel import ChannelStatistics
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import free_port, serve
from couponflow.kernel.ops import Queues, ops_app
from couponflow.kernel.telemetry import new_registry
from couponflow.messages import Click
from tests.commands.command_line import CommandLine
from tests.kernel.http_clients import HOST, new_listener, serving
from tests.samples import make_click, rows_of

SMS = '{"to": "+919876543210", "text": "Your code is on its way."}'


async def test_the_channels_of_the_running_daemon_are_shown(tmp_path: Path) -> None:
    clock = ManualClock()
    channel: MemoryChannel[Click] = MemoryChannel("clicks", 5_000, clock)
    await channel.publish([make_click(number) for number in range(1_234)])
    queues = Queues([channel])
    app = ops_app(new_registry([]), HealthBoard(clock), (), queues)
    listener = new_listener("hypercorn")
    command_line = CommandLine(tmp_path, "")
    async with serving(partial(serve, app), listener):
        ops = {"COUPONFLOW_OPS_BIND": listener.address}
        table = await command_line.run("queue", "stats", **ops)
        as_json = await command_line.run("queue", "stats", "--json", **ops)
    assert (table.code, as_json.code) == (0, 0)
    assert "clicks" in table.out
    assert "1,234" in table.out
    assert as_json.json()["channels"]["clicks"]["statistics"]["depth"] == 1_234


MILLION = 1_000_000


class HugeChannel:
    """A channel with more of everything than fits beside anything else."""

    name = "emails"

    async def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            capacity=MILLION,
            depth=MILLION,
            in_flight=MILLION + 1,
            oldest_seconds=MILLION + 1.5,
            waiting_publishers=0,
            published=MILLION,
            acknowledged=MILLION + 3,
            rejected=MILLION + 4,
            redelivered=0,
        )


async def test_the_numbers_are_whole_in_80_columns(tmp_path: Path, database_url: str) -> None:
    app = ops_app(new_registry([]), HealthBoard(ManualClock()), (), Queues([HugeChannel()]))
    listener = new_listener("hypercorn")
    command_line = CommandLine(tmp_path, database_url)
    await command_line.run("queue", "push", "sms", SMS, "--at", "2100-01-01T00:00:00Z")
    async with serving(partial(serve, app), listener):
        ended = await command_line.run(
            "queue", "stats", COUPONFLOW_OPS_BIND=listener.address, COLUMNS="80"
        )
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert [re.split(r" {2,}", line) for line in ended.out.splitlines()] == [
        ["channel", "waiting", "in flight", "oldest", "done", "rejected", "dead"],
        ["emails", "1,000,000", "1,000,001", "1,000,002 s", "1,000,003", "1,000,004", "0"],
        ["sms", "-", "-", "-", "-", "-", "0"],
        [""],
        ["outbox", "due", "oldest due", "later", "leased", "streamed"],
        ["emails", "0", "0 s", "0", "0", "0"],
        ["sms", "0", "0 s", "1", "0", "0"],
    ]


async def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    bind = f"{HOST}:{free_port(HOST)}"
    ended = await CommandLine(tmp_path, "").run("queue", "stats", COUPONFLOW_OPS_BIND=bind)
    assert (ended.code, ended.out) == (1, "")
    assert f"no daemon answers on http://{bind}" in ended.err
    assert "couponflow run" in ended.err


async def test_an_answer_of_some_other_program_is_not_believed(tmp_path: Path) -> None:
    listener = new_listener("hypercorn")
    app = ops_app(new_registry([]), HealthBoard(ManualClock()), (), Queues([]))
    app.router.routes.clear()
    async with serving(partial(serve, app), listener):
        ended = await CommandLine(tmp_path, "").run(
            "queue", "stats", COUPONFLOW_OPS_BIND=listener.address
        )
    assert ended.code == 1
    assert "no daemon answers" in ended.err


async def test_the_outbox_is_shown_without_a_daemon(tmp_path: Path, database_url: str) -> None:
    command_line = CommandLine(tmp_path, database_url)
    nobody = {"COUPONFLOW_OPS_BIND": f"{HOST}:{free_port(HOST)}"}
    for at in ("2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z"):
        await command_line.run("queue", "push", "sms", SMS, "--at", at)
    table = await command_line.run("queue", "stats", **nobody)
    as_json = await command_line.run("queue", "stats", "--json", **nobody)
    assert (table.code, as_json.code) == (0, 0)
    assert "no daemon answers" in table.err
    assert "sms" in table.out
    sms = as_json.json()["channels"]["sms"]
    assert (sms["statistics"], sms["dead_letters"]) == (None, 0)
    assert (sms["outbox"]["due"], sms["outbox"]["later"]) == (1, 1)


async def test_the_daemon_and_the_database_are_shown_as_one(
    tmp_path: Path, database_url: str
) -> None:
    clock = ManualClock()
    channel: MemoryChannel[Click] = MemoryChannel("clicks", 5_000, clock)
    await channel.publish([make_click(1)])
    app = ops_app(new_registry([]), HealthBoard(clock), (), Queues([channel]))
    listener = new_listener("hypercorn")
    command_line = CommandLine(tmp_path, database_url)
    await command_line.run("queue", "push", "sms", SMS)
    async with serving(partial(serve, app), listener):
        ended = await command_line.run(
            "queue", "stats", "--json", COUPONFLOW_OPS_BIND=listener.address
        )
    assert (ended.code, ended.err) == (0, "")
    channels = ended.json()["channels"]
    assert list(channels) == ["clicks", "sms"]
    assert channels["clicks"]["statistics"]["depth"] == 1
    assert channels["clicks"]["outbox"]["due"] == 0
    assert channels["sms"]["outbox"]["due"] == 1


async def test_a_channel_is_paused_limited_and_resumed(tmp_path: Path, database_url: str) -> None:
    command_line = CommandLine(tmp_path, database_url)
    steps = [
        ("pause", "sms"),
        ("limit", "sms", "--per-second", "2.5", "--concurrency", "3"),
        ("limit", "sms", "--per-second", "off"),
        ("resume", "sms"),
    ]
    ended = [await command_line.run("queue", *step, "--json") for step in steps]
    assert [each.code for each in ended] == [0, 0, 0, 0]
    told = [tuple(each.json().values()) for each in ended]
    assert told == [
        ("sms", True, None, None),
        ("sms", True, 2.5, 3),
        ("sms", True, None, 3),
        ("sms", False, None, 3),
    ]
    by_whom = f"cli:{getpass.getuser()}"
    assert await rows_of(
        database_url, "select channel, paused, concurrency, changed_by from channel_controls"
    ) == [("sms", False, 3, by_whom)]
    assert await rows_of(
        database_url, "select actor, action from audit_logs order by recorded_at, id"
    ) == [(by_whom, f"channel.{action}") for action in ("pause", "limit", "limit", "resume")]
    shown = await command_line.run("queue", "pause", "sms")
    assert shown.out == "sms is paused, without a rate limit, 3 at once\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause", "fax"),
        ("resume", "fax"),
        ("limit", "fax", "--per-second", "1"),
        ("limit", "sms"),
        ("limit", "sms", "--per-second", "0"),
        ("limit", "sms", "--per-second", "nan"),
        ("limit", "sms", "--per-second", "inf"),
        ("limit", "sms", "--concurrency", "0"),
        ("limit", "sms", "--concurrency", "1.5"),
        ("limit", "clicks", "--concurrency", "2"),
    ],
)
async def test_what_makes_no_sense_is_wrong_usage(
    tmp_path: Path, database_url: str, arguments: tuple[str, ...]
) -> None:
    ended = await CommandLine(tmp_path, database_url).run("queue", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    assert await rows_of(database_url, "select count(*) from channel_controls") == [(0,)]


async def test_why_clicks_have_no_concurrency_is_said(tmp_path: Path, database_url: str) -> None:
    command_line = CommandLine(tmp_path, database_url)
    refused = await command_line.run("queue", "limit", "clicks", "--concurrency", "2")
    assert (refused.code, refused.out) == (2, "")
    assert "stores whole batches" in " ".join(refused.err.split())
    taken = await command_line.run(
        "queue", "limit", "clicks", "--per-second", "1", "--concurrency", "off", "--json"
    )
    assert list(taken.json().values()) == ["clicks", False, 1.0, None]
