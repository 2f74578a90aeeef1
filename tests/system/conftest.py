"""Fixtures of tests that drive the real daemon."""

import contextlib
import itertools
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from tests.postgres_server import reachable_folder
from tests.system.daemon_process import DaemonProcess
from tests.system.shop import import_shop

RATE_LIMIT = 7
STATS_TOKEN = "a-token-of-the-tests"

_database_numbers = itertools.count(1)


@pytest.fixture
def var() -> Iterator[Path]:
    """A `var` folder for one daemon, yet to be made, in a folder of the test's own."""
    with reachable_folder() as folder:
        yield folder / "var"


@pytest.fixture
def randomness() -> random.Random:
    """Printed when a test fails; COUPONFLOW_TEST_SEED repeats its choices, if not its timing."""
    seed = int(os.environ.get("COUPONFLOW_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"COUPONFLOW_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
async def empty_database(postgres_url: str) -> dict[str, str]:
    """Settings of a daemon on an empty database of the tests' server, which is never stopped."""
    return {"DATABASE_URL": await _new_database(postgres_url)}


@pytest.fixture(params=["memory", "redis"])
def carrier(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings for channels in memory, and for Redis streams."""
    if request.param == "memory":
        return {}
    return {"REDIS_URL": str(request.getfixturevalue("redis_url"))}


@pytest.fixture(scope="session", params=["granian", "hypercorn"])
def server(request: pytest.FixtureRequest) -> str:
    """Each of the servers that the redirector can have."""
    return str(request.param)


@pytest.fixture(scope="session")
async def plain_daemon(server: str, postgres_url: str) -> AsyncIterator[DaemonProcess]:
    """A daemon with the catalogue of `shop`; a changed offer reaches it by NOTIFY only."""
    settings = {"COUPONFLOW_REDIRECT_POLL_SECONDS": "120"}
    async with _shop_daemon(server, postgres_url, settings) as daemon:
        yield daemon


@pytest.fixture(scope="session")
async def strict_daemon(server: str, postgres_url: str) -> AsyncIterator[DaemonProcess]:
    """A daemon behind a proxy, with a rate limit and a token, that soon looks for changes."""
    settings = {
        "COUPONFLOW_REDIRECT_POLL_SECONDS": "0.5",
        "COUPONFLOW_REDIRECT_RATE_LIMIT_PER_MINUTE": str(RATE_LIMIT),
        "COUPONFLOW_REDIRECT_STATS_TOKEN": STATS_TOKEN,
        "COUPONFLOW_HTTP_TRUSTED_PROXIES": "127.0.0.1",
    }
    async with _shop_daemon(server, postgres_url, settings) as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def _shop_daemon(
    server: str, postgres_url: str, settings: Mapping[str, str]
) -> AsyncIterator[DaemonProcess]:
    with reachable_folder() as folder:
        environment = {
            "DATABASE_URL": await _new_database(postgres_url),
            "COUPONFLOW_REDIRECT_SERVER": server,
            **settings,
        }
        async with DaemonProcess(folder / "var", demo=False, environment=environment) as daemon:
            await import_shop(daemon)
            await daemon.start()
            yield daemon
            assert 'couponflow_redirects_total{outcome="error"}' not in await daemon.metrics()
            assert "Traceback" not in daemon.stderr
            await daemon.audit()


async def _new_database(postgres_url: str) -> str:
    """Make an empty database on the tests' server; it goes with the server."""
    parts = conninfo_to_dict(postgres_url)
    server_url = make_conninfo("", **{**parts, "dbname": "postgres"})
    name = f"system_{next(_database_numbers)}"
    async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as connection:
        await connection.execute(SQL("create database {}").format(Identifier(name)))
    host = quote(str(parts["host"]))
    return f"postgresql://{parts['user']}@/{name}?host={host}&port={parts['port']}"
