"""The daemon as operators meet it: starts that are refused, figures, commands beside it, bounds."""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from tests.postgres_server import PostgresServer
from tests.system.answers import CheckReport, MigrationReport, QueueStats
from tests.system.daemon_process import DaemonProcess
from tests.system.load import load, sample_paths
from tests.system.raw_http import HOST, get
from tests.system.waiting import until

NAMED_METRICS = {
    'couponflow_redirects_total{outcome="redirected"}',
    "couponflow_redirect_seconds_count",
    "couponflow_redirect_seconds_sum",
    'couponflow_redirect_seconds_bucket{le="0.001"}',
    'couponflow_messages_total{channel="clicks",outcome="done"}',
    'couponflow_queue_depth{channel="clicks"}',
    'couponflow_queue_oldest_seconds{channel="clicks"}',
    'couponflow_dead_letters{channel="clicks"}',
    'couponflow_role_up{role="redirect"}',
    'couponflow_role_up{role="clicks"}',
    'couponflow_role_restarts_total{role="redirect"}',
    'couponflow_role_restarts_total{role="clicks"}',
    "couponflow_journal_bytes",
    "couponflow_clicks_unrecorded_total",
}

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


@contextlib.contextmanager
def another_program(port: int) -> Iterator[None]:
    """Somebody who listens there and shares with nobody."""
    with socket.create_server((HOST, port)):
        yield


async def refused_start(daemon: DaemonProcess, code: int) -> str:
    """Start it, see it end with this exit code and without a traceback; what it said."""
    await daemon.launch()
    ended = await daemon.ended()
    said = daemon.stderr
    assert ended.code == code, said
    assert "Traceback" not in said
    return said


async def test_a_second_daemon_on_a_folder_is_refused_and_the_first_goes_on(var: Path) -> None:
    async with DaemonProcess(var) as first, DaemonProcess(var) as second:
        await first.start()
        said = await refused_start(second, 1)
        assert str(var / "journal") in said
        async with load(first.redirect_port, sample_paths(random.Random(1))) as log:
            await log.more(20)
        assert log.failures == {}
        await first.stored(log.click_ids)
        await first.audit()


@pytest.mark.parametrize("which", ["redirect", "ops"])
async def test_a_port_of_another_program_is_named(var: Path, which: str) -> None:
    async with DaemonProcess(var, demo=False) as daemon:
        port = daemon.redirect_port if which == "redirect" else daemon.ops_port
        with another_program(port):
            said = await refused_start(daemon, 1)
            assert f"cannot listen on 127.0.0.1:{port}" in said
            checked = await daemon.command("check")
            assert (checked.code, f"127.0.0.1:{port}" in checked.out) == (1, True)
        assert not await anyio.Path(var / "postgres").exists()
        await daemon.start()
        await daemon.audit()


async def test_a_port_of_another_program_is_named_with_a_shared_database_too(
    var: Path, empty_database: dict[str, str]
) -> None:
    async with DaemonProcess(var, environment=empty_database) as daemon:
        with another_program(daemon.redirect_port):
            said = await refused_start(daemon, 1)
        assert f"cannot listen on 127.0.0.1:{daemon.redirect_port}" in said
        assert await daemon.rows("select 1 from pg_tables where schemaname = 'public'") == []


@pytest.mark.parametrize(
    ("roles", "explained"),
    [
        ("redirect", "Add clicks"),
        ("redirct", "there is no role 'redirct'"),
        ("", "no role is named"),
    ],
)
async def test_roles_that_cannot_work_are_wrong_usage(
    var: Path, roles: str, explained: str
) -> None:
    async with DaemonProcess(var, roles=roles) as daemon:
        assert explained in await refused_start(daemon, 2)
        assert not await anyio.Path(var).exists()


@pytest.mark.parametrize(
    ("variable", "value", "explained"),
    [
        ("COUPONFLOW_REDIRECT_BINT", "127.0.0.1:1", "COUPONFLOW_REDIRECT_BIND"),
        ("COUPONFLOW_REDIRECT_SERVER", "apache", "[redirect] server"),
        ("COUPONFLOW_JOURNAL_MAX_BYTES", "many", "[journal] max_bytes"),
        ("DATABASE_URL", "mysql://here", "postgresql://"),
    ],
)
async def test_a_wrong_setting_is_named_with_its_mend(
    var: Path, variable: str, value: str, explained: str
) -> None:
    async with DaemonProcess(var, environment={variable: value}) as daemon:
        said = await refused_start(daemon, 2)
        assert variable in said
        assert explained in said
        assert not await anyio.Path(var).exists()


async def test_metrics_and_commands_agree_with_what_was_sent(
    var: Path, empty_database: dict[str, str], randomness: random.Random
) -> None:
    async with DaemonProcess(var, environment=empty_database) as daemon:
        await daemon.start()
        async with load(daemon.redirect_port, sample_paths(randomness)) as log:
            await log.more(300)
        for path in ("/out/a/b/c", "/out/a/b/d"):
            assert (await daemon.get(path)).status == 400
        await daemon.stored(log.click_ids)
        stats = await daemon.settled()
        metrics = await daemon.metrics()
        assert metrics.keys() >= NAMED_METRICS
        redirected = metrics['couponflow_redirects_total{outcome="redirected"}']
        # Clients that were stopped in the middle may have been answered once more each.
        assert len(log.click_ids) <= redirected <= len(log.click_ids) + 4
        assert metrics['couponflow_redirects_total{outcome="malformed"}'] == 2
        assert metrics["couponflow_redirect_seconds_count"] == redirected + 2
        assert metrics['couponflow_messages_total{channel="clicks",outcome="done"}'] == redirected
        assert metrics['couponflow_messages_total{channel="clicks",outcome="duplicate"}'] == 0
        assert metrics["couponflow_clicks_unrecorded_total"] == 0
        assert metrics["couponflow_journal_bytes"] > 0
        for role in ("redirect", "clicks", "ops", "networks"):
            assert metrics[f'couponflow_role_up{{role="{role}"}}'] == 1
            assert metrics[f'couponflow_role_restarts_total{{role="{role}"}}'] == 0
        for verdict, clicks in stats.by_verdict.items():
            assert metrics[f'couponflow_clicks_total{{verdict="{verdict}"}}'] == clicks
        await commands_work_beside(daemon, int(redirected))
        await daemon.audit()


async def commands_work_beside(daemon: DaemonProcess, clicks: int) -> None:
    """`queue stats`, `check` and `migrate --status` while it runs."""
    queue = await daemon.command("queue", "stats", "--json")
    assert queue.code == 0, queue
    state = msgspec.json.decode(queue.out, type=QueueStats).channels["clicks"]
    assert (state.statistics.depth, state.statistics.in_flight, state.dead_letters) == (0, 0, 0)
    assert state.statistics.acknowledged == clicks

    checked = await daemon.command("check", "--json")
    report = msgspec.json.decode(checked.out, type=CheckReport)
    # Daemons with one database may share their ports, so these are no problem here.
    assert [check for check in report.checks if not check.ok] == []
    assert (checked.code, report.ok) == (0, True)
    assert {"configuration", "roles", "var_dir", "database"} <= {c.name for c in report.checks}

    status = await daemon.command("migrate", "--status", "--json")
    assert status.code == 0, status
    migrations = msgspec.json.decode(status.out, type=MigrationReport).migrations
    assert len(migrations) >= 3
    assert all(migration.applied_at for migration in migrations)


async def test_the_demo_s_traffic_brings_clicks_of_several_verdicts(
    var: Path, empty_database: dict[str, str]
) -> None:
    environment = {**empty_database, "COUPONFLOW_SANDBOX_SHOPPERS_PER_SECOND": "100"}
    async with DaemonProcess(var, traffic=True, environment=environment) as daemon:
        await daemon.start()

        async def several_verdicts() -> bool:
            return sum(n > 0 for n in (await daemon.stats()).by_verdict.values()) >= 3

        await until(several_verdicts)
        stats = await daemon.stats()
        assert stats.by_verdict["human"] > 0
        assert stats.total == sum(stats.by_verdict.values()) == stats.last_hour
        assert (await daemon.terminate()).code == 0
        await daemon.audit()


async def test_a_full_journal_keeps_redirecting_and_counts_what_it_could_not_record(
    var: Path, stoppable_postgres: PostgresServer, randomness: random.Random
) -> None:
    environment = {
        "DATABASE_URL": stoppable_postgres.url,
        "COUPONFLOW_DATABASE_CONNECT_TIMEOUT_SECONDS": "1",
        "COUPONFLOW_JOURNAL_SEGMENT_BYTES": "65536",
        "COUPONFLOW_JOURNAL_MAX_BYTES": "262144",
    }
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        paths = sample_paths(randomness)
        async with load(daemon.redirect_port, paths) as log:
            await stoppable_postgres.stop()
            await until(lambda: some_unrecorded(daemon))
            await log.more(100)
        assert log.failures == {}
        journal = (await daemon.readiness()).checks["journal"]
        assert (journal.ok, "without a record" in journal.detail) == (False, True)
        assert (await daemon.metrics())["couponflow_journal_bytes"] <= 262_144
        lost = await unrecorded(daemon)
        await stoppable_postgres.start()
        await until(lambda: all_is_well(daemon))
        async with load(daemon.redirect_port, paths) as again:
            await again.more(100)
        assert again.failures == {}
        await daemon.stored(again.click_ids)
        assert await unrecorded(daemon) == lost
        stats = await daemon.settled()
        redirected = (await daemon.metrics())['couponflow_redirects_total{outcome="redirected"}']
        assert stats.total == redirected - lost
        await daemon.audit()


async def unrecorded(daemon: DaemonProcess) -> float:
    return (await daemon.metrics())["couponflow_clicks_unrecorded_total"]


async def some_unrecorded(daemon: DaemonProcess) -> bool:
    return await unrecorded(daemon) > 0


async def all_is_well(daemon: DaemonProcess) -> bool:
    return not (await daemon.readiness()).failing


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
async def test_a_slow_client_does_not_disturb_others(
    var: Path, empty_database: dict[str, str], randomness: random.Random, server: str
) -> None:
    environment = {**empty_database, "COUPONFLOW_REDIRECT_SERVER": server}
    async with DaemonProcess(var, environment=environment) as daemon:
        await daemon.start()
        slow_path, *paths = sample_paths(randomness)
        request = f"GET {slow_path} HTTP/1.1\r\nHost: slow\r\nConnection: close\r\n\r\n".encode()
        async with (
            await anyio.connect_tcp(HOST, daemon.redirect_port) as slow,
            load(daemon.redirect_port, paths) as log,
        ):
            for byte in request:
                await slow.send(bytes([byte]))
                await log.more(5)
            answer = await slow.receive()
        assert answer.startswith(b"HTTP/1.1 302")
        assert log.failures == {}
        await daemon.stored(log.click_ids)
        await daemon.audit()


async def test_operators_paths_that_do_not_exist_are_problems(
    var: Path, empty_database: dict[str, str]
) -> None:
    async with DaemonProcess(var, environment=empty_database) as daemon:
        await daemon.start()
        missing = await get(daemon.ops_port, "/nothing")
        assert missing.status == 404
        assert missing.headers["content-type"] == "application/problem+json"
        health = await get(daemon.ops_port, "/health")
        assert (health.status, health.body) == (200, b'{"status":"alive"}')

        async def all_is_well() -> bool:
            readiness = await daemon.readiness()
            return (readiness.status, readiness.failing) == ("ready", set())

        await until(all_is_well)
        await daemon.audit()
