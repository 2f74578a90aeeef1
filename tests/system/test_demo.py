"""The demo as somebody meets it who has just typed its command: its made-up world is at work."""

import os
import shlex
from pathlib import Path

import anyio
import pytest

from couponflow.config import SENDER_SECTIONS
from tests.system.daemon_process import DaemonProcess
from tests.system.waiting import until

DEMO_SECONDS = 75.0
"""A text message waits for the second script of the providers, and its report for its turn."""
COMMAND_SECONDS = 30.0

OURS = """
select 'clicks' from affiliate_transactions
join affiliate_clicks c on c.external_click_id::text = click_ref
union
select channel from notification_reports r join notifications n on n.id = r.notification_id
"""
"""What of ours was told of: clicks by networks, emails and SMS by who delivered them."""

pytestmark = [pytest.mark.system, pytest.mark.once, pytest.mark.timeout(150)]


async def test_all_senders_send_and_tell_of_clicks_and_notifications_there_are(
    var: Path, empty_database: dict[str, str]
) -> None:
    environment = {
        **empty_database,
        "COUPONFLOW_SANDBOX_SHOPPERS_PER_SECOND": "30",
        "COUPONFLOW_SANDBOX_WEBHOOKS_PER_SECOND": "20",
    }
    async with DaemonProcess(var, traffic=True, environment=environment) as daemon:
        await daemon.start()

        async def all_have_sent() -> bool:
            return await sources(daemon) == set(SENDER_SECTIONS)

        async def all_tell_of_ours() -> bool:
            return {str(row[0]) for row in await daemon.rows(OURS)} == {"clicks", "emails", "sms"}

        with daemon.shown_on_failure(2 * DEMO_SECONDS):
            await until(all_have_sent, seconds=DEMO_SECONDS)
            await until(all_tell_of_ours, seconds=DEMO_SECONDS)
        assert "msg91" in await listed_as_it_says(daemon)
        assert (await daemon.terminate()).code == 0
        # Nobody calls before the ports are open, and all that is sent is taken.
        for complaint in ("shoppers_not_served", "webhook_not_taken", "shop_not_served"):
            assert complaint not in daemon.stderr
        await daemon.audit()


async def listed_as_it_says(daemon: DaemonProcess) -> str:
    """What the command prints that it tells people to type."""
    line = next(line for line in daemon.stderr.splitlines() if line.endswith(" webhooks list"))
    command = shlex.split(line.partition(": ")[2])
    with anyio.fail_after(COMMAND_SECONDS):
        done = await anyio.run_process(
            [*command, "--source=msg91"],
            cwd=daemon.var.parent,
            env={**os.environ, **daemon.environment},
        )
    return done.stdout.decode()


async def sources(daemon: DaemonProcess) -> set[str]:
    return {str(row[0]) for row in await daemon.rows("select distinct source from webhook_logs")}
