"""A program that calls a daemon's API, with a token an operator made for it."""

import contextlib
from collections.abc import AsyncIterator

import httpx2

from tests.system.daemon_process import DaemonProcess
from tests.system.raw_http import port_answers
from tests.system.waiting import until


async def token(daemon: DaemonProcess, role: str) -> str:
    """What `couponflow token` prints."""
    result = await daemon.command("token", f"--role={role}", "--subject=tests")
    assert result.code == 0, result.err
    return result.out.strip()


@contextlib.asynccontextmanager
async def caller(daemon: DaemonProcess, role: str = "service") -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API of a daemon that has started."""
    await until(lambda: port_answers(daemon.api_port))
    headers = {"Authorization": f"Bearer {await token(daemon, role)}"}
    url = f"http://127.0.0.1:{daemon.api_port}"
    async with httpx2.AsyncClient(verify=False, base_url=url, headers=headers) as client:
        yield client
