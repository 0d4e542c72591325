-- held(key, field, token, floor): the lease's waiting flag while it is this token's and no
-- invalidation came since it was granted; nil otherwise. Its end in time does not matter: nobody
-- else took it.
local function held(key, field, token, floor)
  local lease = redis.call('HGET', key, 'l' .. field)
  if not lease or string.sub(lease, 1, 8) ~= token then -- the lease check
    return nil
  end
  if redis.call('HGET', key, 'f') ~= floor then -- the floor
    return nil
  end
  return string.sub(lease, 9, 9)
end

-- make_room(key, max_fields): forget fields at random until one more fits; never the floor.
local function make_room(key, max_fields)
  local tries = 0
  while redis.call('HLEN', key) >= max_fields and tries < 64 do
    local field = redis.call('HRANDFIELD', key)
    if field ~= 'f' then
      redis.call('HDEL', key, field)
    end
    tries = tries + 1
  end
end
