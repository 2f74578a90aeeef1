from functools import partial
from pathlib import Path

from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import free_port, serve
from couponflow.kernel.ops import Queues, ops_app
from couponflow.kernel.telemetry import new_registry
from couponflow.messages import Click
from tests.commands.command_line import CommandLine
from tests.kernel.http_clients import HOST, new_listener, serving
from tests.samples import make_click


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
