#!lua flags=allow-oom
-- era.lua: who might have an invalidation that cannot arrive, and what that makes of stored values.
-- KEYS[1] members: sorted set, member -> end of its lease, the server's Unix ms  KEYS[2] era
-- ARGV[1] 'join' | 'renew' (only a member) | 'leave' | 'open'  ARGV[2] member, '' for 'open'
-- ARGV[3] lease_ms  ARGV[4] the latest of the server's times, ms, that a renewal counts from
-- ARGV[5] an era to begin where there is none: the server's run, 8 bytes, and 8 at random
-- ARGV[6] most ttl_ms
-- returns {1 done | 0 not a member (any more): join again, now_ms, era, lapsed members, end_ms}
-- Values count under the era that they were stored under. The era ends with the first lease that
-- ends, by its TTL: whoever is cut off knows that its silence is heard. A renewal counts from no
-- later than its sender reckons with, so that a copy that arrives late gives nothing more.
-- Allowed where memory is full: both keys are small and few.
local members, era = KEYS[1], KEYS[2]
local mode, member, fresh = ARGV[1], ARGV[2], ARGV[5]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- The nameless member says that the set is whole. Without it, it was evicted or never was: nobody
-- knows who ought to be in it.
-- Both keys are read before anything is written: who has lapsed must not be forgotten for nothing.
local whole, now_era = redis.call('ZSCORE', members, ''), redis.call('GET', era)
local lapsed = redis.call('ZREMRANGEBYSCORE', members, '-inf', now_ms)
if not whole then
  redis.call('UNLINK', members)
  redis.call('ZADD', members, '+inf', '')
end
if not whole or lapsed > 0 or not now_era or string.sub(now_era, 1, 8) ~= string.sub(fresh, 1, 8) then
  now_era = fresh
  redis.call('SET', era, fresh)
end

local done = 1
if mode == 'join' then
  redis.call('ZADD', members, now_ms + ARGV[3], member)
elseif mode == 'leave' then
  redis.call('ZREM', members, member)
elseif mode == 'renew' then
  if redis.call('ZSCORE', members, member) then
    local from_ms = now_ms
    -- rule renewal_basis
    from_ms = math.min(now_ms, tonumber(ARGV[4]))
    -- end of rule
    redis.call('ZADD', members, 'GT', from_ms + ARGV[3], member)
  else
    done = 0
  end
end

local ends_at = now_ms + ARGV[6]
local first = redis.call('ZRANGE', members, 0, 0, 'WITHSCORES')
if first[1] ~= '' and tonumber(first[2]) < ends_at then
  ends_at = tonumber(first[2])
end
redis.call('PEXPIREAT', era, string.format('%.0f', ends_at)) -- the end of the era
redis.call('PEXPIRE', members, ARGV[6])
local end_ms = tonumber(redis.call('ZSCORE', members, member) or 0)
return {done, now_ms, now_era, lapsed, end_ms < math.huge and end_ms or 0}
