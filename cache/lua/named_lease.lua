#!lua flags=allow-oom
-- named_lease.lua: take, renew or give back a named lease. One holder at a time in the fleet.
-- KEYS[1] lease  KEYS[2] fence: the last token that was given         (one hash tag, one slot)
-- ARGV[1] owner, 8 bytes  ARGV[2] ttl_ms > 0  ARGV[3] 'take' | 'renew' | 'give_back'
-- ARGV[4] ttl_ms of the fence
-- returns {1, token} held, or given back | {0, left_ms} held by another, or may be: wait
--         | {2} not held: nothing to renew or give back
-- A lease holds its owner and token. The token is the server's time in us, or one more than the
-- last: it grows even where the fence was lost.
-- allow-oom: the holder must be able to renew it; two small keys, each with a TTL.
local owner, ttl_ms, mode = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local held, last = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if held and string.sub(held, 1, 8) == owner then
  local token = string.sub(held, 9)
  if mode == 'give_back' then
    redis.call('UNLINK', KEYS[1])
  else
    redis.call('PEXPIRE', KEYS[1], ttl_ms)
  end
  return {1, token}
elseif mode ~= 'take' then
  return {2}
end
-- rule one_holder
if held then
  return {0, math.max(redis.call('PTTL', KEYS[1]), 1)}
end
-- end of rule
-- rule young_server: a server that has just started may have forgotten a lease that still counts
local up_s = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
if up_s * 1000 < ttl_ms then
  return {0, ttl_ms - up_s * 1000}
end
-- end of rule
local time = redis.call('TIME')
local token = math.max(time[1] * 1000000 + time[2], (tonumber(last) or 0) + 1)
token = string.format('%.0f', token)
redis.call('SET', KEYS[1], owner .. token, 'PX', ttl_ms)
redis.call('SET', KEYS[2], token, 'PX', ARGV[4])
return {1, token}
