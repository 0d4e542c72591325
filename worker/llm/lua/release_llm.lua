#!lua flags=allow-oom
-- release_llm.lua: record the end of a direct call and adapt the limit on calls in flight
-- (additive increase, multiplicative decrease).
-- KEYS[1] rate hash  KEYS[2] calls in flight
-- ARGV[1] call id  ARGV[2] outcome: ok | busy | other  ARGV[3] ms that the provider asks to wait, or 0
-- ARGV[4] most in flight  ARGV[5] ttl_ms
-- returns the new limit on calls in flight
-- allow-oom: a slot that is not given back would be missing until its lease ends.
--@rights
--@include types
expect('hash', KEYS[1])
local t = redis.call('TIME')
local now = t[1] * 1000 + t[2] / 1000
local known = redis.call('ZREM', KEYS[2], ARGV[1]) == 1
local row = redis.call('HMGET', KEYS[1], 'limit', 'successes', 'cut', 'pause')
local most = tonumber(ARGV[4])
local limit = math.min(number_of(row[1], most), most)
if not known then
  return math.floor(limit)
end
if ARGV[2] == 'busy' then
  -- Calls that were in flight at the last cut report the load before it, so they cause no second cut.
  if now - number_of(row[3], 0) > 1000 then
    limit = math.max(1, limit * 0.7)
    redis.call('HSET', KEYS[1], 'limit', tostring(limit), 'successes', 0, 'cut', tostring(now))
  end
  local pause = now + tonumber(ARGV[3])
  if tonumber(ARGV[3]) > 0 and pause > number_of(row[4], 0) then
    redis.call('HSET', KEYS[1], 'pause', string.format('%.0f', pause))
  end
elseif ARGV[2] == 'ok' and limit < most then
  local successes = number_of(row[2], 0) + 1
  if successes >= limit then
    limit, successes = math.min(most, limit + 1), 0
  end
  redis.call('HSET', KEYS[1], 'limit', tostring(limit), 'successes', successes)
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return math.floor(limit)
