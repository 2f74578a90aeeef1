"""What is done to a stream on the server, each in one atomic step.

`KEYS[1]` is always the stream. The group is made at `0` wherever it is missing (a FLUSHALL, a
stream that another program began): done entries are deleted, so whatever is there is to be done.
"""

from couponflow.kernel.redis_client import Script

GROUP = "couponflow"
ABANDONED_MILLISECONDS = 100_000_000_000
"""An entry is let go by making it look idle for years: then anybody may claim it at once."""

_PRELUDE = f"""
local stream, group, abandoned = KEYS[1], '{GROUP}', {ABANDONED_MILLISECONDS}

local function group_made()
  redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
end

-- Run a command of the group; with a group made for it if there was none.
local function of_group(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err and string.find(answer.err, 'NOGROUP', 1, true) then
    group_made()
    answer = redis.call(...)
  elseif type(answer) == 'table' and answer.err then
    error(answer.err, 0)
  end
  return answer
end

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""


def _script(text: str) -> Script:
    return Script(_PRELUDE + text)


MAKE_GROUP = _script("group_made() return 1")

# KEYS[2] is what is remembered of the producer. ARGV: the number of this call, the capacity, for
# how many seconds to remember, whether acknowledgements are owed, how many batches; then of each
# batch its name, its size, and of each message how many arguments follow, and those.
# Answers with how many batches it took, from the first, and the ids: a call that is repeated
# because its answer was lost gets the same answer, and adds nothing.
PUBLISH = _script("""
local known = redis.call('HMGET', KEYS[2], 'call', 'answer')
if known[1] == ARGV[1] then
  return known[2]
end
if redis.call('EXISTS', stream) == 0 then
  group_made()
end
local room = tonumber(ARGV[2]) - redis.call('XLEN', stream)
local owed = ARGV[4] == '1'
local at, taken, answer = 6, 0, {''}
for _ = 1, tonumber(ARGV[5]) do
  local name, size = ARGV[at], tonumber(ARGV[at + 1])
  if size > room then
    break
  end
  at = at + 2
  for _ = 1, size do
    local width = tonumber(ARGV[at])
    answer[#answer + 1] = redis.call('XADD', stream, '*', unpack(ARGV, at + 1, at + width))
    at = at + width + 1
  end
  if owed then
    redis.call('HSET', KEYS[2], 'owed:' .. name, size)
  end
  room = room - size
  taken = taken + 1
end
answer[1] = tostring(taken)
local told = table.concat(answer, ' ')
if taken > 0 then
  redis.call('HSET', KEYS[2], 'call', ARGV[1], 'answer', told)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return told
""")

# KEYS[2] as above. ARGV: for how many seconds to remember, how many names to forget, and those;
# then names of batches. Answers with how much of each is not acknowledged yet, -1 for unknown ones.
OWED = _script("""
redis.call('EXPIRE', KEYS[2], ARGV[1])
local asked = 3 + tonumber(ARGV[2])
for at = 3, asked - 1 do
  redis.call('HDEL', KEYS[2], 'owed:' .. ARGV[at])
end
local answer = {}
for at = asked, #ARGV do
  answer[#answer + 1] = tonumber(redis.call('HGET', KEYS[2], 'owed:' .. ARGV[at]) or -1)
end
return answer
""")

# ARGV: the consumer, how many at most. Answers with the stream's length, its latest id where there
# was nothing to read, and the entries.
READ = _script("""
local got = of_group('XREADGROUP', 'GROUP', group, ARGV[1], 'COUNT', ARGV[2],
  'STREAMS', stream, '>')
if got and got[1] then
  return {redis.call('XLEN', stream), '', got[1][2]}
end
local latest = '0-0'
local told = redis.call('XINFO', 'STREAM', stream)
for at = 1, #told, 2 do
  if told[at] == 'last-generated-id' then
    latest = told[at + 1]
  end
end
return {redis.call('XLEN', stream), latest, {}}
""")

# ARGV: the consumer, how many milliseconds of silence mean death, where to begin, how many at most.
# Answers with where to go on, and with what was taken over: id, number of this delivery, fields.
# What is pending here, and merely late in being renewed, is left to the renewal.
CLAIM = _script("""
local pending = of_group('XPENDING', stream, group, 'IDLE', ARGV[2], ARGV[3], '+', ARGV[4])
local claimed, onwards = {}, ''
for _, entry in ipairs(pending) do
  if entry[2] ~= ARGV[1] or entry[3] >= abandoned then
    local got = redis.call('XCLAIM', stream, group, ARGV[1], ARGV[2], entry[1])
    if got[1] then
      claimed[#claimed + 1] = {entry[1], entry[4] + 1, got[1][2]}
    elseif #redis.call('XRANGE', stream, entry[1], entry[1]) == 0 then
      redis.call('XACK', stream, group, entry[1])
    end
  end
end
if #pending == tonumber(ARGV[4]) then
  onwards = '(' .. pending[#pending][1]
end
return {onwards, claimed}
""")

# KEYS[2] is when each consumer was last heard of. ARGV: the consumer, where to begin, how many at
# most. Says that the consumer lives and that what it holds is being worked on. Answers with where
# to go on, and with what it holds: id and how often it was delivered.
RENEW = _script("""
redis.call('ZADD', KEYS[2], milliseconds(), ARGV[1])
redis.call('EXPIRE', KEYS[2], 86400)
local pending = of_group('XPENDING', stream, group, ARGV[2], '+', ARGV[3], ARGV[1])
local held, onwards = {}, ''
local claim = {'XCLAIM', stream, group, ARGV[1], 0}
for _, entry in ipairs(pending) do
  if entry[3] < abandoned then
    held[#held + 1] = {entry[1], entry[4]}
    claim[#claim + 1] = entry[1]
  end
end
if #held > 0 then
  claim[#claim + 1] = 'JUSTID'
  redis.call(unpack(claim))
end
if #pending == tonumber(ARGV[3]) then
  onwards = '(' .. pending[#pending][1]
end
return {onwards, held}
""")

# KEYS[2] as above. ARGV: the consumer, how many milliseconds of silence mean death. Forgets the
# dead who hold nothing, and answers with how many others live.
SWEEP = _script("""
local now, others = milliseconds(), 0
for _, told in ipairs(of_group('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = {}
  for at = 1, #told, 2 do
    consumer[told[at]] = told[at + 1]
  end
  if consumer.name ~= ARGV[1] then
    local seen = redis.call('ZSCORE', KEYS[2], consumer.name)
    if seen and now - seen <= tonumber(ARGV[2]) then
      others = others + 1
    elseif consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
      redis.call('ZREM', KEYS[2], consumer.name)
    end
  end
end
return others
""")

# ARGV: ids. Answers with those that are still in the stream, and their fields.
FETCH = _script("""
local found = {}
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    found[#found + 1] = entry
  end
end
return found
""")

# ARGV: ids. Answers with those that are not in the stream.
MISSING = _script("""
local missing = {}
for _, id in ipairs(ARGV) do
  if #redis.call('XRANGE', stream, id, id) == 0 then
    missing[#missing + 1] = id
  end
end
return missing
""")

# Further KEYS are what is remembered of producers. ARGV, for each batch: which of the KEYS, 0 for
# none; its name; how many ids follow, and those.
ACKNOWLEDGE = _script("""
local at, done = 1, 0
while at <= #ARGV do
  local key, name, size = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
  local acked = redis.call('XACK', stream, group, unpack(ARGV, at + 3, at + 2 + size))
  redis.call('XDEL', stream, unpack(ARGV, at + 3, at + 2 + size))
  if key > 0 and redis.call('HEXISTS', KEYS[key], 'owed:' .. name) == 1 then
    redis.call('HINCRBY', KEYS[key], 'owed:' .. name, -acked)
  end
  done = done + acked
  at = at + 3 + size
end
return done
""")

# ARGV: the consumer, then ids and how often each has been handed out. Lets them go, if they are
# still the consumer's.
RELEASE = _script("""
for at = 2, #ARGV, 2 do
  local entry = of_group('XPENDING', stream, group, ARGV[at], ARGV[at], 1)[1]
  if entry and entry[2] == ARGV[1] then
    redis.call('XCLAIM', stream, group, ARGV[1], 0, ARGV[at], 'IDLE', abandoned,
      'RETRYCOUNT', ARGV[at + 1], 'JUSTID')
  end
end
return 1
""")

# KEYS[2] as for RENEW. ARGV: the consumer, which has let everything go.
LEAVE = _script("""
redis.call('ZREM', KEYS[2], ARGV[1])
if #of_group('XPENDING', stream, group, '-', '+', 1, ARGV[1]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, group, ARGV[1])
end
return 1
""")

# Answers with the stream's length, how much of it is handed out, and the age of the oldest in ms.
STATISTICS = _script("""
local pending = of_group('XPENDING', stream, group)[1]
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local age = 0
if oldest then
  age = math.max(0, milliseconds() - tonumber(string.match(oldest[1], '^%d+')))
end
return {redis.call('XLEN', stream), pending, age}
""")
