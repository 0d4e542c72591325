#!lua flags=allow-oom
-- renew.lua: renew the leases of a worker's running jobs.
-- KEYS[1..4] queues critical, high, default, low  KEYS[5] running
--   and, derived from the prefix: in-progress:<id>
-- ARGV[1] prefix  ARGV[2] lease_ms  ARGV[3..] id, claim, id, claim, ...  (<= 2000 pairs)
-- returns the ids of lost leases: another worker claimed the job, or it ended
-- allow-oom: without it, jobs on a full server would run twice.
--@include types
--@include lease
expect('zset', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease, lost = tonumber(ARGV[2]), {}
for i = 3, #ARGV, 2 do
  local id, claim = ARGV[i], ARGV[i + 1]
  local key = ARGV[1] .. 'in-progress:' .. id
  if text_of(key) == claim then
    local number, stalled = string.match(claim, '|(%d)|[^|]*|(%d+)$')
    local holds = lease_of(lease, tonumber(stalled))
    redis.call('PEXPIRE', key, lease + 86400000)
    redis.call('ZADD', KEYS[5], now + holds, id)
    redis.call('ZADD', KEYS[tonumber(number)], 'XX', now + holds + lease, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
