-- Shared step: store a value: its bytes, or {key}: a large one, which a plain SET stored under this key
-- (worker/queue/staging.py). A script that copied it would hold the server.
local function put_value(key, value)
  if type(value) == 'table' then
    redis.call('PERSIST', value[1])
    redis.call('RENAME', value[1], key)
  else
    redis.call('SET', key, value)
  end
end
