-- waiting_if_held(version_key, lease_key, token, version): check the right to store.
-- Returns the lease's flag, '0' to '3' (lease.lua), while the token holds the lease and the entry
-- still has the version that the lease was granted under; nil otherwise.
local function waiting_if_held(version_key, lease_key, token, version)
  local lease = redis.call('GET', lease_key) or ''
  -- rule lease_holder
  if string.sub(lease, 1, 8) ~= token then
    return nil
  end
  -- end of rule
  -- rule entry_version
  if redis.call('GET', version_key) ~= version then
    return nil
  end
  -- end of rule
  return string.sub(lease, 9, 9)
end

-- outlive(key, ttl_ms): extend a key's TTL to at least this long.
local function outlive(key, ttl_ms)
  if redis.call('PTTL', key) < tonumber(ttl_ms) then
    redis.call('PEXPIRE', key, ttl_ms)
  end
end

-- staged_of(version_key, token): where the holder of a lease has sent what is too large for a script.
local function staged_of(version_key, token)
  local hex = string.gsub(token, '.', function(c)
    return string.format('%02x', string.byte(c))
  end)
  return version_key .. ':staged:' .. hex
end
