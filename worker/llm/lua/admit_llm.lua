#!lua
-- admit_llm.lua: decide whether a direct call may start, for all workers: by requests and tokens per
-- minute, calls in flight and the provider's requested pause.
-- KEYS[1] rate hash  KEYS[2] calls in flight  KEYS[3] reserved start times
-- ARGV[1] call id  ARGV[2] urgent: 1 | 0  ARGV[3] tokens
-- ARGV[4] ms between requests, 0 no limit  ARGV[5] requests that may come at once
-- ARGV[6] ms between tokens, 0 no limit  ARGV[7] tokens that may come at once
-- ARGV[8] most in flight  ARGV[9] share of it kept for urgent calls  ARGV[10] lease ms
-- ARGV[11] ms ahead that a start may be reserved  ARGV[12] ms that it may be used late  ARGV[13] ttl_ms
-- returns 0 start now (in flight until released) | ms to wait before asking again
-- no allow-oom: a full server could not store the answer of a call that it lets start.
--@rights
--@include types
expect('zset', KEYS[3])
local t = redis.call('TIME')
local now = t[1] * 1000 + t[2] / 1000
local row = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'limit', 'pause', 'crowd', 'window')
local function keep()
  for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], ARGV[13])
  end
end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  -- The same call was sent again after its reply was lost.
  return 0
end
local pause = number_of(row[4], 0)
if pause > now then
  return math.ceil(pause - now)
end

-- Refused calls get staggered waits, so that they do not all return at once.
local function refuse(base, step)
  local window = math.floor(now / 1000)
  local crowd = number_of(row[6], 0) == window and number_of(row[5], 0) or 0
  redis.call('HSET', KEYS[1], 'crowd', crowd + 1, 'window', window)
  keep()
  return math.ceil(math.min(base + crowd * step, 30000))
end

redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local limit = math.min(number_of(row[3], tonumber(ARGV[8])), tonumber(ARGV[8]))
if ARGV[2] == '0' then
  limit = math.max(1, math.floor(limit * (1 - tonumber(ARGV[9]))))
end
if redis.call('ZCARD', KEYS[2]) >= limit then
  return refuse(20, 5)
end

local function go()
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[10]), ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  keep()
  return 0
end

local start = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or '')
if start and start > now + 1 then
  return math.ceil(start - now)
end
if start and now - start <= tonumber(ARGV[12]) then
  return go()
end
-- A reservation that was missed is void: a late use would exceed the rate of the calls after it.
local step, token_step = tonumber(ARGV[4]), tonumber(ARGV[6])
local cost = tonumber(ARGV[3]) * token_step
local requests = math.max(number_of(row[1], 0), now)
local tokens = math.max(number_of(row[2], 0), now)
-- A call larger than all that may come at once goes when the bucket is full.
local room = math.max(tonumber(ARGV[7]) * token_step, cost)
local due = math.max(requests + step - step * tonumber(ARGV[5]), tokens + cost - room, now)
if due - now > tonumber(ARGV[11]) then
  return refuse(due - now, step)
end
redis.call('HSET', KEYS[1], 'requests', string.format('%.3f', requests + step), 'tokens',
  string.format('%.3f', tokens + cost))
if due <= now + 1 then
  return go()
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 60000)
redis.call('ZADD', KEYS[3], due, ARGV[1])
keep()
return math.ceil(due - now)
