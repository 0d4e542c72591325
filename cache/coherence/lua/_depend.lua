-- The index of a dependency lists the agents whose values need it (forget.lua says what it holds).

-- to_list(indexes, agent, leased_us, most, longest_us): what to add to each index; nil if one has
-- changed since the lease, or is about to. What has ended a write is remembered for longer than
-- longest_us, so a load that took longer is refused too. Reads only.
local function to_list(indexes, agent, leased_us, most, longest_us)
  local time = redis.call('TIME')
  local now_us = time[1] * 1000000 + time[2]
  if now_us - leased_us > longest_us then
    return nil
  end
  local members = {}
  -- Later than every invalidation that the lease is later than, also after the clock was set back.
  local score = string.format('%.0f', math.max(now_us, leased_us))
  for i, key in ipairs(indexes) do
    -- rule dependency_version
    local last = redis.call('ZRANGE', key .. ':intents', -1, -1, 'WITHSCORES')
    if last[2] and tonumber(last[2]) >= leased_us then
      return nil
    end
    -- end of rule
    local known = redis.call('ZSCORE', key, agent)
    local full = redis.call('ZCARD', key) >= most and not known
    members[i] = {score, full and '' or agent}
  end
  return members
end

-- list(indexes, members, ttl_ms): add them.
local function list(indexes, members, ttl_ms)
  for i, key in ipairs(indexes) do
    redis.call('ZADD', key, members[i][1], members[i][2])
    if redis.call('PTTL', key) < tonumber(ttl_ms) then
      redis.call('PEXPIRE', key, ttl_ms)
    end
  end
end
