-- Shared step: wake parked deliveries of an endpoint. Needs types before it.

-- Wakes of one call. Whoever is left out tries without being woken.
local wakes_left = 80
-- Wake at most `most` parked deliveries of an endpoint, the longest parked first. returns how many
local function promote(p, endpoint, most)
  local key = p .. 'webhook-parked:' .. endpoint
  local rows, moved = redis.pcall('ZRANGE', key, 0, math.min(most, wakes_left) + 9, 'WITHSCORES'), 0
  if #rows == 0 then
    return 0
  end
  --@include wake
  for i = 1, #rows, 2 do
    if moved >= most or wakes_left <= 0 then
      return moved
    end
    wakes_left = wakes_left - 1
    local how = wake(p, rows[i], rows[i + 1])
    if how ~= 'running' then
      redis.call('ZREM', key, rows[i])
    end
    if how == 'moved' then
      moved = moved + 1
    end
  end
  return moved
end
