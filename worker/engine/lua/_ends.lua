-- Shared step: apply the ends of jobs. An end counts only while its claim stands.
-- Needs types, put_job and dead before it; the caller has checked the types of all KEYS.
-- An end: {kind, id, claim, queue number, details}; kinds and details: worker/engine/records.py

-- A user's right to one of these commands may be taken away at any time. So the claim is deleted last:
-- until then the end counts, and the poll that is sent again writes all of it.

-- Delete all keys of live jobs. zrem: ids by queue number.
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

local function release_unique(key, id)
  if key and text_of(key) == id then
    redis.call('DEL', key)
  end
end

-- Move a job from the running ones back into its queue, due at the given time.
local function put_back(prefix, keys, number, id, due)
  redis.call('ZADD', keys[number], due, id)
  redis.call('ZREM', keys[5], id)
  redis.call('DEL', prefix .. 'in-progress:' .. id)
end

local function keep_result(prefix, id, d)
  local key = prefix .. 'result:' .. id
  if type(d.result) == 'table' then
    put_value(key, d.result)
    if d.ttl then
      redis.call('PEXPIRE', key, d.ttl)
    end
  elseif d.result then
    if d.ttl then
      redis.call('SET', key, d.result, 'PX', d.ttl)
    else
      redis.call('SET', key, d.result)
    end
  end
end

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

local function apply_ends(ends, prefix, keys, dead, late, buried)
  local now, names = dead.now, {}
  for i, e in ipairs(ends) do
    names[i] = prefix .. 'in-progress:' .. e[2]
  end
  local held = redis.call('MGET', unpack(names))
  local over, zrem = {}, {{}, {}, {}, {}}
  local function finish(id, number)
    over[#over + 1] = id
    zrem[number][#zrem[number] + 1] = id
  end
  for i, e in ipairs(ends) do
    local kind, id, number, d = e[1], e[2], e[4], e[5]
    if held[i] ~= e[3] then
      late[#late + 1] = i
    elseif kind == 'done' then
      keep_result(prefix, id, d)
      release_unique(d.unique, id)
      finish(id, number)
      if d.gather then
        gathered(prefix, keys, id, d.gather)
      end
      for _, job in ipairs(d.jobs or {}) do
        enqueue(prefix, keys, job)
      end
    elseif kind == 'retry' then
      redis.call('SET', prefix .. 'retry:' .. id, d.tries)
      put_back(prefix, keys, number, id, now + d.delay)
    elseif kind == 'back' then
      put_back(prefix, keys, number, id, d.due)
    elseif kind == 'started' then
      release_unique(d.unique, id)
    else
      local bad = kind == 'dead'
      if kind == 'park' then
        redis.call('HSETNX', keys[8], id, now)
        local waited = now - number_of(redis.call('HGET', keys[8], id), 0)
        bad = waited >= d.most
        if not bad then
          put_back(prefix, keys, number, id, now + math.max(500, math.min(waited, 15000)))
        end
      end
      if bad then
        buried[#buried + 1] = i
        bury(dead, id, {reason = d.reason, error = d.error, queue = number, tries = d.tries, name = d.name})
        keep_result(prefix, id, d)
        release_unique(d.unique, id)
        finish(id, number)
      end
    end
  end
  forget(prefix, keys, over, zrem)
end
