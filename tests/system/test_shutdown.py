"""The daemon ends when it is told to, in time, and with nothing left undone."""

import random
import signal
from pathlib import Path

import anyio
import pytest

from couponflow.kernel.embedded_postgres import embedded_postgres
from couponflow.kernel.journal import read_segments
from tests.postgres_server import PostgresServer
from tests.system.daemon_process import DaemonProcess
from tests.system.load import LoadLog, load, sample_paths
from tests.system.raw_http import HOST

ROUNDS = 5
LATEST_STOP_SECONDS = 0.5
IDLE_EXIT_SECONDS = 4.0
SERVERS = ("granian", "hypercorn")

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]


def waiting_records(daemon: DaemonProcess) -> int:
    """Clicks in the journal of a stopped daemon that its next start would have to store."""
    return sum(record.beyond_checkpoint for record in read_segments(daemon.var / "journal"))


async def stopped_under_load(daemon: DaemonProcess, log: LoadLog, wait_seconds: float) -> None:
    await log.more(50)
    await anyio.sleep(wait_seconds)
    ended = await daemon.terminate()
    assert ended.code == 0, daemon.stderr[-4000:]
    assert ended.seconds < 10
    assert waiting_records(daemon) == 0


@pytest.mark.parametrize("server", SERVERS)
async def test_every_answered_click_is_stored_when_the_daemon_has_exited(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    randomness: random.Random,
    server: str,
) -> None:
    environment = {**empty_database, **carrier, "COUPONFLOW_REDIRECT_SERVER": server}
    async with DaemonProcess(var, environment=environment) as daemon:
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            for _ in range(ROUNDS):
                await daemon.start()
                wait_seconds = randomness.uniform(0.0, LATEST_STOP_SECONDS)
                await stopped_under_load(daemon, log, wait_seconds)
                stored = await daemon.stored_click_ids()
                assert set(log.click_ids) - set(stored) == set()
                assert len(stored) == len(set(stored))
        assert "role_failed" not in daemon.stderr
        await daemon.audit()


async def test_every_answered_click_is_in_the_embedded_postgres_after_an_exit(
    var: Path, randomness: random.Random
) -> None:
    async with DaemonProcess(var) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await stopped_under_load(daemon, log, randomness.uniform(0.0, LATEST_STOP_SECONDS))
        async with embedded_postgres(var / "postgres"):
            assert set(log.click_ids) - set(await daemon.stored_click_ids()) == set()
        await daemon.audit()


@pytest.mark.parametrize("server", SERVERS)
async def test_idle_and_half_sent_requests_do_not_delay_the_exit(
    var: Path, empty_database: dict[str, str], server: str
) -> None:
    environment = {**empty_database, "COUPONFLOW_REDIRECT_SERVER": server}
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        async with (
            await anyio.connect_tcp(HOST, daemon.redirect_port) as idle,
            await anyio.connect_tcp(HOST, daemon.redirect_port) as half_sent,
            await anyio.connect_tcp(HOST, daemon.redirect_port) as silent,
            await anyio.connect_tcp(HOST, daemon.ops_port) as idle_operator,
        ):
            for stream in (idle, idle_operator):
                await stream.send(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
                assert (await stream.receive()).startswith(b"HTTP/1.1 200")
            await half_sent.send(b"GET /out/vastrika/ HTTP/1.1\r\nHost: he")
            ended = await daemon.terminate()
            await silent.aclose()
        assert ended.code == 0
        assert ended.seconds < IDLE_EXIT_SECONDS
        await daemon.audit()


async def test_ctrl_c_in_the_terminal_ends_daemon_and_embedded_postgres_cleanly(
    var: Path, randomness: random.Random
) -> None:
    async with DaemonProcess(var) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(200)
            daemon.send_signal(signal.SIGINT, to_group=True)
            assert (await daemon.ended()).code == 0
        assert waiting_records(daemon) == 0
        assert not (var / "postgres" / "postmaster.pid").exists()
        async with embedded_postgres(var / "postgres"):
            assert set(log.click_ids) - set(await daemon.stored_click_ids()) == set()
        await daemon.audit()


async def test_a_stop_during_an_outage_keeps_its_deadline_and_the_next_start_stores_everything(
    var: Path,
    stoppable_postgres: PostgresServer,
    carrier: dict[str, str],
    randomness: random.Random,
) -> None:
    deadline = {"COUPONFLOW_SHUTDOWN_DEADLINE": "6"}
    environment = {"DATABASE_URL": stoppable_postgres.url, **carrier, **deadline}
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(100)
            await stoppable_postgres.stop()
            await log.more(500)
            assert log.failures == {}
            ended = await daemon.terminate()
        assert ended.code == 0
        assert ended.seconds < 6 + 2
        assert waiting_records(daemon) > 0 or carrier
        await stoppable_postgres.start()
        await daemon.start()
        await daemon.stored(log.click_ids)
        await daemon.settled()
        await daemon.audit()


async def test_a_stop_while_postgres_is_waited_for_ends_the_start(var: Path) -> None:
    closed = "postgresql://nobody@127.0.0.1:1/nowhere"
    async with DaemonProcess(var, environment={"DATABASE_URL": closed}) as daemon:
        await daemon.launch()
        await daemon.says("waiting for PostgreSQL")
        ended = await daemon.terminate()
        assert ended.code == 0, daemon.stderr
        assert ended.seconds < 3
        assert "stopped while starting" in daemon.stderr
        assert "Traceback" not in daemon.stderr


async def test_a_second_signal_ends_a_slow_stop_at_once_and_loses_nothing(
    var: Path, stoppable_postgres: PostgresServer, randomness: random.Random
) -> None:
    environment = {"DATABASE_URL": stoppable_postgres.url}
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(100)
            await stoppable_postgres.stop()
            await log.more(500)
            daemon.send_signal(signal.SIGTERM)
            await daemon.says('"stopping"')
            assert daemon.running
            ended = await daemon.terminate()
        assert ended.code == 143
        assert ended.seconds < 1
        await stoppable_postgres.start()
        await daemon.start()
        await daemon.stored(log.click_ids)
        await daemon.settled()
        await daemon.audit()
