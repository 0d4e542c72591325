#!lua flags=allow-oom
-- prune.lua: take out of an index what its invalidation has forgotten, a part at a time.
-- KEYS[1] index  KEYS[2] its intents
-- ARGV[1] time of the invalidation, us: what was recorded since stays  ARGV[2] most at once
-- returns how many were taken out: call again while it is the most
-- While another write is under way, its end must find the agents. The mark of an overflow ('')
-- goes all the same: what was not listed has been looked for.
-- allow-oom: it only deletes.
local key, until_us, found = KEYS[1], tonumber(ARGV[1]), {}
if redis.call('ZRANGE', KEYS[2], -1, -1)[1] == '' then
  -- rule recorded_since
  found = redis.call('ZRANGE', key, '-inf', until_us, 'BYSCORE', 'LIMIT', 0, ARGV[2])
  -- end of rule
elseif tonumber(redis.call('ZSCORE', key, '') or 'inf') <= until_us then
  found = {''}
end
if #found > 0 then
  redis.call('ZREM', key, unpack(found))
end
return #found
