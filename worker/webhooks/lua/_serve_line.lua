-- Shared step: wake deliveries of the endpoints in a host's line. Needs promote and shared_states before it.
-- Looks at lines in one call.
local looks_left = 48

local function has_room(host, endpoint)
  local most = math.min(terms.concurrency, math.max(1, math.floor(endpoint.share or math.huge)))
  return endpoint.used < most and host_has_room(host, endpoint)
end

-- Wake one parked delivery of each endpoint in turn, for at most `places` deliveries.
local function serve_line(host, places)
  local last = redis.call('ZRANGE', host.line, -1, -1, 'WITHSCORES')[2]
  local turn = math.max(now, number_of(last, 0))
  local left = redis.call('ZCARD', host.line)
  while places > 0 and left > 0 and looks_left > 0 do
    left, looks_left = left - 1, looks_left - 1
    local name = redis.call('ZRANGE', host.line, 0, 0)[1]
    local ok, endpoint = pcall(endpoint_of, name)
    local parked = p .. 'webhook-parked:' .. name
    local waiting = ok and fits('zset', parked) and redis.call('ZCARD', parked) or 0
    if waiting == 0 or endpoint.closed > now then
      host.waiting = host.waiting - redis.call('ZREM', host.line, name)
    else
      turn = turn + 1
      redis.call('ZADD', host.line, turn, name)
      if has_room(host, endpoint) then
        places = places - promote(p, name, 1)
      end
    end
  end
end
