"""What Redis does in one step for the shared state, as Lua.

Each touches one key, so that a Redis Cluster can run it. Times come from the server, so the clocks
of the daemons do not matter. Lua's numbers hold microseconds since the epoch exactly.
"""

from couponflow.kernel.redis_client import Script

RATE_LIMIT = Script(
    """
    -- ARGV: limit, window in ms. Reply: 1 and 0, or 0 and how many ms to wait.
    local count = tonumber(redis.call('GET', KEYS[1]) or '0')
    local left = redis.call('PTTL', KEYS[1])
    local allowed = count < tonumber(ARGV[1])
    if allowed then
        redis.call('INCR', KEYS[1])
    end
    -- Also where somebody wrote the key without an end: nobody is refused for ever.
    if left <= 0 then
        left = tonumber(ARGV[2])
        redis.call('PEXPIRE', KEYS[1], left)
    end
    return allowed and {1, 0} or {0, left}
    """
)

ADD = Script(
    """
    -- ARGV: amount, lifetime in ms from the first. Reply: the count, and how many ms it lives yet.
    local count = redis.call('INCRBY', KEYS[1], ARGV[1])
    local left = redis.call('PTTL', KEYS[1])
    if left <= 0 then
        left = tonumber(ARGV[2])
        redis.call('PEXPIRE', KEYS[1], left)
    end
    return {count, left}
    """
)

ACQUIRE = Script(
    """
    -- ARGV: holder, lease in ms, how many ms the fence is kept. Reply: the fence, or 0.
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local ends_at, fence = unpack(redis.call('HMGET', KEYS[1], 'ends_at', 'fence'))
    if now < tonumber(ends_at or '0') then
        return 0
    end
    -- Of the time as well: it grows even when Redis has forgotten the one before.
    fence = math.max(tonumber(fence or '0') + 1, now)
    redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'fence', string.format('%.0f', fence),
        'ends_at', string.format('%.0f', now + ARGV[2] * 1000))
    redis.call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
    return fence
    """
)

RENEW = Script(
    """
    -- ARGV: holder, fence, lease in ms (0 lets go), how many ms the fence is kept. Reply: 1 or 0.
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local holder, fence, ends_at = unpack(
        redis.call('HMGET', KEYS[1], 'holder', 'fence', 'ends_at'))
    if holder ~= ARGV[1] or fence ~= ARGV[2] or now >= tonumber(ends_at or '0') then
        return 0
    end
    redis.call('HSET', KEYS[1], 'ends_at', string.format('%.0f', now + ARGV[3] * 1000))
    redis.call('PEXPIRE', KEYS[1], ARGV[3] + ARGV[4])
    return 1
    """
)

ENLIST = Script(
    """
    -- ARGV: worker id, lifetime in ms. Lists it until then, and drops who is over.
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
        redis.call('PEXPIRE', KEYS[1], ARGV[2])
    end
    return 1
    """
)

PUBLISH = Script(
    """
    -- ARGV: payload. As a script it goes through the one node of a cluster that a key of that name
    -- would be on: by different nodes, payloads would overtake each other.
    return redis.call('PUBLISH', KEYS[1], ARGV[1])
    """
)
