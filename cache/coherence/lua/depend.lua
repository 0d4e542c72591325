-- depend.lua: record what an agent's value depends on, before the value is stored.
-- KEYS indexes of the dependencies and of the organization; forget.lua says what they hold
-- ARGV[1] agent  ARGV[2] time of the lease, us  ARGV[3] ttl_ms  ARGV[4] most agents listed
-- ARGV[5] most us since the lease: what has ended a write is remembered for longer than that
-- returns 1 recorded | 0 one has changed since the lease, or is about to: do not store
local agent, leased_us = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
if now_us - leased_us > tonumber(ARGV[5]) then
  return 0
end
local known, full = {}, {}
for i, key in ipairs(KEYS) do
  -- rule dependency_version
  local last = redis.call('ZRANGE', key .. ':intents', -1, -1, 'WITHSCORES')
  if last[2] and tonumber(last[2]) >= leased_us then
    return 0
  end
  -- end of rule
  known[i] = redis.call('ZSCORE', key, agent)
  full[i] = redis.call('ZCARD', key) >= tonumber(ARGV[4])
end
for i, key in ipairs(KEYS) do
  if full[i] and not known[i] then
    redis.call('ZADD', key, '+inf', '')
  else
    redis.call('ZADD', key, string.format('%.0f', now_us), agent)
  end
  if redis.call('PTTL', key) < tonumber(ARGV[3]) then
    redis.call('PEXPIRE', key, ARGV[3])
  end
end
return 1
