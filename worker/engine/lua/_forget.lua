-- Shared step: delete all keys of live jobs. zrem: ids by queue number.
local function forget(prefix, keys, ids, zrem)
  local gone = {}
  for i, id in ipairs(ids) do
    gone[3 * i - 2] = prefix .. 'in-progress:' .. id
    gone[3 * i - 1] = prefix .. 'retry:' .. id
    gone[3 * i] = prefix .. 'job:' .. id
  end
  if #ids == 0 then
    return
  end
  redis.call('ZREM', keys[5], unpack(ids))
  if redis.call('EXISTS', keys[7], keys[8]) > 0 then
    redis.call('ZREM', keys[7], unpack(ids))
    redis.call('HDEL', keys[8], unpack(ids))
  end
  for number = 1, 4 do
    if #zrem[number] > 0 then
      redis.call('ZREM', keys[number], unpack(zrem[number]))
    end
  end
  redis.call('DEL', unpack(gone))
end
