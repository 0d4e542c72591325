-- Shared step: enqueue the jobs that follow an end. Needs types before it.
--@include put_job
--@include put_value

-- A stored priority names one of the worker's queues. Of the key that development versions of 0.1
-- stored, the last part is the priority too.
local NUMBERS = {critical = 1, high = 2, low = 4}
local function queue_of(priority, keys)
  return keys[NUMBERS[string.match(priority, '[^:]*$')] or 3]
end

local function enqueue(prefix, keys, job)
  local id = job.id
  put_job(queue_of(job.queue, keys), prefix .. 'job:' .. id, prefix .. 'result:' .. id, keys[6], id, job.body, server_ms() + (job.delay or 0))
end

-- Store one result of a gathering; the last one enqueues the job that waits for all of them, or adds
-- the gathering to the schedules: a worker joins results that are large (worker/engine/gatherings.py).
local MOST_JOINED_BYTES = 524288
local function gathered(prefix, keys, id, g)
  local key = prefix .. 'gather:' .. g.id
  if not fits('hash', key) then
    redis.call('DEL', key)
    return
  end
  local value = g.value
  if type(value) == 'table' then
    local part = prefix .. 'gather-part:' .. g.index .. ':' .. g.id
    put_value(part, value)
    redis.call('PEXPIRE', part, math.max(1, redis.call('PTTL', key)))
    value = ''
  end
  redis.call('HSET', key, g.index, value)
  local row = redis.call('HMGET', key, 'size', 'queue', 'job')
  local size = number_of(row[1])
  if not (size and row[2] and row[3]) then
    redis.call('DEL', key)
    return
  end
  -- The fields are size, head, tail, queue, job and one per finished part. Read the parts only when
  -- all are there.
  if redis.call('HLEN', key) < size + 5 then
    return
  end
  local head, tail, values = redis.call('HSTRLEN', key, 'head'), redis.call('HSTRLEN', key, 'tail'), {}
  if head == 0 or tail == 0 then
    redis.call('DEL', key)
    return
  end
  local bytes = head + tail
  for i = 0, size - 1 do
    if bytes > MOST_JOINED_BYTES then
      break
    end
    local value = redis.call('HGET', key, i)
    if not value then
      return
    end
    bytes = value == '' and math.huge or bytes + #value
    values[i + 1] = value
  end
  if bytes > MOST_JOINED_BYTES then
    redis.call('ZADD', keys[11], 0, '~gather:' .. g.id)
    return
  end
  -- A msgpack array 32: its length, then the encoded values.
  local array = '\221' .. string.char(math.floor(size / 16777216) % 256, math.floor(size / 65536) % 256,
    math.floor(size / 256) % 256, size % 256) .. table.concat(values)
  local around = redis.call('HMGET', key, 'head', 'tail')
  enqueue(prefix, keys, {id = row[3], queue = row[2], body = around[1] .. array .. around[2]})
  redis.call('DEL', key)
end
