-- Shared step: apply the ends of jobs. An end counts only while its claim stands.
-- Needs types, body and bury_dead of poll.lua before it; the caller has checked the types of all KEYS.
-- An end: {kind, id, claim, queue number, details}; kinds and details: worker/engine/records.py

-- A user's right to one of these commands may be taken away at any time. So the claim is deleted last:
-- until then the end counts, and the poll that is sent again writes all of it.

--@include forget
--@include put_back
local function release_unique(key, id)
  if key and text_of(key) == id then
    redis.call('DEL', key)
  end
end

local function keep_result(prefix, id, d)
  local key = prefix .. 'result:' .. id
  if type(d.result) == 'table' then
    --@include put_value
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

-- Made by the first end that needs it.
local enqueue_followers
local function follow(prefix, keys, id, d)
  if not enqueue_followers then
    --@include followers
    enqueue_followers = function(id, d)
      if d.gather then
        gathered(prefix, keys, id, d.gather)
      end
      for _, job in ipairs(d.jobs or {}) do
        enqueue(prefix, keys, job)
      end
    end
  end
  enqueue_followers(id, d)
end

-- returns whether jobs may have been put into a queue
local function apply_ends(ends, prefix, keys, dead, late, buried)
  local now, names, added = dead.now, {}, false
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
      if d.result then
        keep_result(prefix, id, d)
      end
      if d.unique then
        release_unique(d.unique, id)
      end
      finish(id, number)
      if d.gather or d.jobs then
        follow(prefix, keys, id, d)
        added = true
      end
    elseif kind == 'started' then
      release_unique(d.unique, id)
    elseif kind == 'retry' then
      added = true
      redis.call('SET', prefix .. 'retry:' .. id, d.tries)
      put_back(prefix, keys, number, id, now + d.delay)
    elseif kind == 'back' then
      added = true
      put_back(prefix, keys, number, id, d.due)
    else
      local bad = kind == 'dead'
      if kind == 'park' then
        redis.call('HSETNX', keys[8], id, now)
        local waited = now - number_of(redis.call('HGET', keys[8], id), 0)
        bad = waited >= d.most
        if not bad then
          added = true
          put_back(prefix, keys, number, id, now + math.max(500, math.min(waited, 15000)))
        end
      end
      if bad then
        buried[#buried + 1] = i
        bury_dead(id, {reason = d.reason, error = d.error, queue = number, tries = d.tries, name = d.name})
        keep_result(prefix, id, d)
        release_unique(d.unique, id)
        finish(id, number)
      end
    end
  end
  forget(prefix, keys, over, zrem)
  return added
end
