-- waiting_if_held(floor_key, lease_key, token, floor): the lease's waiting flag while it is this
-- token's and nothing was invalidated since it was granted; nil otherwise.
local function waiting_if_held(floor_key, lease_key, token, floor)
  local lease = redis.call('GET', lease_key)
  if not lease or string.sub(lease, 1, 8) ~= token then -- the lease check
    return nil
  end
  if redis.call('GET', floor_key) ~= floor then -- the floor
    return nil
  end
  return string.sub(lease, 9, 9)
end

-- outlive(key, ttl_ms): let a key last at least this long.
local function outlive(key, ttl_ms)
  if redis.call('PTTL', key) < tonumber(ttl_ms) then
    redis.call('PEXPIRE', key, ttl_ms)
  end
end
