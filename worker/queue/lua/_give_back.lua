-- Shared step: end what _hold.lua did. Needs types and held before it.

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
