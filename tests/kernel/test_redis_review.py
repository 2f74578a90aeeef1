"""What an operator is told of the Redis that is to carry messages."""

from couponflow.config import RedisSettings
from couponflow.kernel.redis_client import open_redis
from couponflow.kernel.redis_review import RedisFinding, review_redis
from tests.redis_server import RedisServer, ask


async def review(url: str, *, cluster: bool = False) -> list[RedisFinding]:
    settings = RedisSettings(url=url, cluster=cluster, timeout_seconds=2.0)
    async with open_redis(settings) as redis:
        return await review_redis(redis, settings)


async def test_a_server_that_forgets_at_a_restart_is_tolerated_and_named(
    stoppable_redis: RedisServer,
) -> None:
    reachable, forgets = await review(stoppable_redis.url)
    assert reachable.tolerable
    assert reachable.text.startswith("reachable, version ")
    assert forgets.tolerable
    assert "appendonly is off" in forgets.text
    assert "[journal] checkpoint" in forgets.text


async def test_a_server_that_keeps_everything_needs_no_remark(
    stoppable_redis: RedisServer,
) -> None:
    assert await ask(stoppable_redis.port, "CONFIG", "SET", "appendonly", "yes") == "+OK"
    assert len(await review(stoppable_redis.url)) == 1


async def test_a_server_that_may_evict_is_named(stoppable_redis: RedisServer) -> None:
    setting = ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert await ask(stoppable_redis.port, *setting) == "+OK"
    found = await review(stoppable_redis.url)
    assert [finding.tolerable for finding in found] == [True, True, True]
    assert "maxmemory-policy is allkeys-lru" in found[1].text


async def test_a_cluster_that_is_taken_for_a_single_server_is_a_problem(
    redis_cluster_url: str,
) -> None:
    found = await review(redis_cluster_url)
    assert [finding.text for finding in found if not finding.tolerable] == [
        "it is a cluster: set [redis] cluster = true"
    ]


async def test_a_cluster_is_reviewed_as_one(redis_cluster_url: str) -> None:
    found = await review(redis_cluster_url, cluster=True)
    assert found[0].text.startswith("reachable, version ")
    assert all(finding.tolerable for finding in found)


async def test_a_server_that_is_away_is_one_problem(stoppable_redis: RedisServer) -> None:
    await stoppable_redis.stop()
    (problem,) = await review(stoppable_redis.url)
    assert not problem.tolerable
    assert "Redis is away" in problem.text
