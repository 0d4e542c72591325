-- Shared step: where the due jobs of a paused function wait. Needs types and held before it.

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
