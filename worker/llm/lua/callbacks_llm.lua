#!lua
-- callbacks_llm.lua: enqueue callbacks of ended requests, as many as one call may and the queues have
-- room for.
-- KEYS[1] ended requests with callbacks, a list: "<id>:<number of the end>:<ok>:<cursor>"  KEYS[2..5] queues
-- ARGV[1] prefix p of the LLM keys (see _llm_callback.lua)  ARGV[2] most jobs in all queues, 0: no limit
-- ARGV[3] about the most callbacks of this call
-- returns 1 call again | 0 none is left | -1 the queues are full
-- The cursor is HSCAN's, stored after each page: a call whose reply was lost repeats nothing.
-- no allow-oom: it adds jobs.
--@rights
--@include types
--@include put_job
--@include llm_callback
local p, most, left = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function room()
  if most == 0 then
    return left
  end
  local size = 0
  for i = 2, 5 do
    size = size + redis.call('ZCARD', KEYS[i])
  end
  return math.min(left, most - size)
end

if not fits('list', KEYS[1]) then
  redis.call('DEL', KEYS[1])
end
expect('zset', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
expect_callbacks(p)
local looks = 0
while left > 0 and looks < 50 do
  looks = looks + 1
  local entry = redis.call('LINDEX', KEYS[1], 0)
  if not entry then
    return 0
  end
  local free = room()
  if free <= 0 then
    return -1
  end
  local id, nth, ok, cursor = string.match(entry, '^(.*):(%d+):(%d):(%d+)$')
  local key, page = p .. 'callback:' .. (id or ''), {'0', {}}
  if id then
    page = allowed(redis.pcall('HSCAN', key, cursor, 'COUNT', math.min(free, 50)))
    if page.err then
      page = {'0', {}}
    end
  end
  for i = 1, #page[2], 2 do
    if page[2][i] ~= '#' then
      put_callback(p, id, nth, page[2][i], page[2][i + 1])
      left = left - 1
    end
  end
  if page[1] ~= '0' then
    redis.call('LSET', KEYS[1], 0, id .. ':' .. nth .. ':' .. ok .. ':' .. page[1])
  else
    redis.call('LPOP', KEYS[1])
    -- A failed request may be retried and end again.
    if ok == '1' then
      redis.call('UNLINK', key)
    end
  end
end
return redis.call('EXISTS', KEYS[1])
