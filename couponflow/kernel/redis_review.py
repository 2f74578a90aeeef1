"""What an operator should know of the Redis that is to carry messages."""

import anyio
import msgspec

from couponflow.config import RedisSettings
from couponflow.kernel.redis_client import Redis, RedisAway, RedisError


class RedisFinding(msgspec.Struct, frozen=True):
    """One thing found; couponflow runs with what is tolerable."""

    tolerable: bool
    text: str


async def review_redis(redis: Redis, settings: RedisSettings) -> list[RedisFinding]:
    """Whether Redis answers, forgets nothing by itself, and is what the settings say it is."""
    try:
        with anyio.move_on_after(settings.timeout_seconds):
            await redis.back()
        info = await redis.call(
            lambda client: client.info("server", "memory", "persistence", "cluster")
        )
    except (RedisAway, RedisError) as error:
        return [RedisFinding(False, str(error))]
    facts = {str(name): str(value) for name, value in info.items()}
    findings = [RedisFinding(True, f"reachable, version {facts.get('redis_version', 'unknown')}")]
    if facts.get("cluster_enabled") == "1" and not settings.cluster:
        findings.append(RedisFinding(False, "it is a cluster: set [redis] cluster = true"))
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        findings.append(
            RedisFinding(
                True,
                f"maxmemory-policy is {policy}: it may evict what is to be delivered. Messages of "
                "the outbox are then handed over again, clicks are not; set it to noeviction",
            )
        )
    if facts.get("aof_enabled") != "1":
        findings.append(
            RedisFinding(
                True,
                "appendonly is off: a restart forgets what it carried. Messages of the outbox are "
                "handed over again; for clicks set appendonly yes, or [journal] checkpoint = "
                '"acknowledged"',
            )
        )
    return findings
