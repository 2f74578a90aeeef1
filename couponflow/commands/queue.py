"""`couponflow queue`."""

import math
from pathlib import Path

import httpx2
import msgspec
from rich.table import Table

from couponflow.commands.support import fail, out, print_json, read_settings
from couponflow.config import parse_bind
from couponflow.kernel.http import Listener
from couponflow.kernel.ops import QueueState

_DEADLINE_SECONDS = 5.0


class _Answer(msgspec.Struct):
    channels: dict[str, QueueState]


def queue_stats_command(config: Path | None, *, as_json: bool) -> None:
    settings = read_settings(config, quiet=True)
    host, port = parse_bind(settings.ops.bind)
    url = Listener(host, port, settings.ops.server).local_url
    try:
        response = httpx2.get(f"{url}/api/v1/queue/stats", timeout=_DEADLINE_SECONDS, verify=False)
        channels = msgspec.json.decode(response.raise_for_status().content, type=_Answer).channels
    except (httpx2.HTTPError, msgspec.DecodeError) as error:
        fail(
            f"no daemon answers on {url} ({error or type(error).__name__}). Channels in memory "
            "live in the daemon: start it with `couponflow run`, or set [ops] bind to where it is."
        )
    if as_json:
        print_json({"channels": channels})
        return
    table = Table("channel", "waiting", "in flight", "oldest", "done", "rejected", "dead letters")
    for name, state in channels.items():
        numbers = state.statistics
        table.add_row(
            name,
            f"{numbers.depth:,}",
            f"{numbers.in_flight:,}",
            f"{math.ceil(numbers.oldest_seconds)} s",
            f"{numbers.acknowledged:,}",
            f"{numbers.rejected:,}",
            f"{state.dead_letters:,}",
        )
    out.print(table)
