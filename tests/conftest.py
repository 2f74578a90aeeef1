"""Fixtures that every test may ask for."""

import itertools
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from couponflow.config import DatabaseSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database, open_database
from couponflow.kernel.migrations import migrate
from tests.postgres_server import PostgresServer, postgres_server
from tests.redis_server import RedisCluster, RedisServer, ask, redis_cluster, redis_server

_TEMPLATE = "couponflow_template"
_SERVERS = {"postgres_url", "stoppable_postgres", "redis_url", "stoppable_redis"}
_database_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-servers",
        action="store_true",
        help="only the tests that need neither PostgreSQL nor Redis, nor the whole daemon",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--without-servers"):
        return
    left_out = [item for item in items if _needs_servers(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _needs_servers(item)]


def _needs_servers(item: pytest.Item) -> bool:
    wanted = set(item.fixturenames) if isinstance(item, pytest.Function) else set[str]()
    is_cluster = "shared_redis_cluster" in wanted
    return bool(wanted & _SERVERS) or is_cluster or item.get_closest_marker("system") is not None


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
async def postgres_url(anyio_backend: tuple[str, dict[str, bool]]) -> AsyncIterator[str]:
    """The URL of the template database, migrated, on a server of this test process.

    Do not connect to it: PostgreSQL copies a template only while nobody uses it.
    """
    async with postgres_server() as server:
        await server.start()
        await _administer(server.url, SQL("create database {}"), _TEMPLATE)
        template_url = _url_of_database(server.url, _TEMPLATE)
        await migrate(template_url)
        yield template_url


@pytest.fixture
async def database_url(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, migrated and empty."""
    name = f"test_{next(_database_numbers)}"
    server_url = _url_of_database(postgres_url, "postgres")
    await _administer(server_url, SQL("create database {} template {}"), name, _TEMPLATE)
    yield _url_of_database(postgres_url, name)
    await _administer(server_url, SQL("drop database {} with (force)"), name)


@pytest.fixture
async def empty_database_url(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own in which nothing was migrated yet."""
    name = f"test_{next(_database_numbers)}"
    server_url = _url_of_database(postgres_url, "postgres")
    await _administer(server_url, SQL("create database {}"), name)
    yield _url_of_database(postgres_url, name)
    await _administer(server_url, SQL("drop database {} with (force)"), name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open `Database` on `database_url`."""
    async with open_database(database_url, DatabaseSettings()) as opened:
        yield opened


@pytest.fixture
async def stoppable_postgres() -> AsyncIterator[PostgresServer]:
    """A server of the test's own, started; its database `postgres` is empty."""
    async with postgres_server() as server:
        await server.start()
        yield server


@pytest.fixture(scope="session")
async def shared_redis(anyio_backend: tuple[str, dict[str, bool]]) -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        await server.start()
        yield server


@pytest.fixture
async def redis_url(shared_redis: RedisServer) -> str:
    """The URL of an empty server of this test process; each test begins with FLUSHALL."""
    assert await ask(shared_redis.port, "FLUSHALL") == "+OK"
    return shared_redis.url


@pytest.fixture
async def stoppable_redis() -> AsyncIterator[RedisServer]:
    """A server of the test's own, started and empty."""
    async with redis_server() as server:
        await server.start()
        yield server


@pytest.fixture(scope="session")
async def shared_redis_cluster(
    anyio_backend: tuple[str, dict[str, bool]],
) -> AsyncIterator[RedisCluster]:
    async with redis_cluster() as cluster:
        yield cluster


@pytest.fixture
async def redis_cluster_url(shared_redis_cluster: RedisCluster) -> str:
    """The URL of a node of an empty cluster; each test begins with FLUSHALL."""
    await shared_redis_cluster.flush()
    return shared_redis_cluster.url


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()


def _url_of_database(url: str, name: str) -> str:
    return make_conninfo("", **{**conninfo_to_dict(url), "dbname": name})


async def _administer(server_url: str, statement: SQL, *names: str) -> None:
    async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as connection:
        await connection.execute(statement.format(*(Identifier(name) for name in names)))
