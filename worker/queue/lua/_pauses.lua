-- Shared step: what is paused, and where the due jobs of a paused function wait. Needs types and held
-- before it.
-- Paused: hash, "priority:<name>" or "function:<name>" -> since, Unix ms; "resume:<function>" while its jobs
-- go back. A held job stays in its queue, HELD ms after its due time, where no claim looks;
-- "<queue>:held:<function>" lists it by its due time.
local MOST_HELD = 500
local NUMBERS = {critical = 1, high = 2, default = 3, low = 4}

-- returns {queues = {number = true}, functions = {name = true} | nil, back = function | nil} | nil: nothing is paused
local function pauses_of(key)
  local found, rows = {queues = {}}, allowed(redis.pcall('HGETALL', key))
  if rows.err or #rows == 0 then
    return nil
  end
  for i = 1, #rows, 2 do
    local kind, name = string.match(rows[i], '^(%l+):(.+)$')
    if kind == 'priority' and NUMBERS[name] then
      found.queues[NUMBERS[name]] = true
    elseif kind == 'function' then
      found.functions = found.functions or {}
      found.functions[name] = true
    elseif kind == 'resume' then
      found.back = name
    end
  end
  return found
end

-- Move due jobs of a function out of the way. rows: due, id, due, id, ...
local function hold(queue, name, rows)
  local key, moved = queue .. ':held:' .. name, {}
  if not fits('zset', key) then
    redis.call('DEL', key)
  end
  for i = 1, #rows, 2 do
    moved[i], moved[i + 1] = held_at(rows[i]), rows[i + 1]
  end
  redis.call('ZADD', key, unpack(rows))
  redis.call('ZADD', queue, 'XX', unpack(moved))
end

-- Make up to `most` held jobs of a function due again as they were. returns how many are looked at; fewer
-- than `most`: none is held any more
local function give_back(paused, queues, name, most)
  local left = most
  for number = 1, 4 do
    local key = queues[number] .. ':held:' .. name
    local rows = left > 0 and fits('zset', key) and redis.call('ZRANGE', key, 0, left - 1, 'WITHSCORES') or {}
    local ids, due = {}, {}
    for i = 1, #rows, 2 do
      ids[#ids + 1] = rows[i]
    end
    if #ids > 0 then
      -- Some may have been run, deleted or moved meanwhile.
      for i, score in ipairs(redis.call('ZMSCORE', queues[number], unpack(ids))) do
        if (number_of(score) or 0) >= HELD then
          due[#due + 1], due[#due + 2] = rows[2 * i], ids[i]
        end
      end
      if #due > 0 then
        redis.call('ZADD', queues[number], 'XX', unpack(due))
      end
      redis.call('ZREMRANGEBYRANK', key, 0, #ids - 1)
      left = left - #ids
    end
  end
  if left > 0 then
    redis.call('HDEL', paused, 'resume:' .. name)
  end
  return most - left
end
