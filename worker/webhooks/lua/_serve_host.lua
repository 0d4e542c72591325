-- Shared step: give the slots that ends have freed to parked deliveries.
-- Needs delivery and shared_states before it. It runs after all records: an error must not undo them.
-- The line of a host has the endpoints whose deliveries found it full; the one that was served longest ago
-- is first. It expires when no delivery has looked for LINE_TTL_MS; parked ones look every 60 s or sooner.
local LINE_TTL_MS = 120000
-- Looks at lines in one call.
local looks_left = 48

local function join_line(host, endpoint)
  host.waiting = host.waiting + redis.call('ZADD', host.line, 'NX', now, endpoint.name)
  redis.call('PEXPIRE', host.line, LINE_TTL_MS)
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

-- freed: endpoint -> {host, number of slots that its ends have freed}
local function serve(freed)
  local lines = {}
  for name, entry in pairs(freed) do
    local host, endpoint = host_of(entry[1]), endpoint_of(name)
    local waits = redis.call('EXISTS', host.line) == 1
    if waits then
      lines[host.name] = (lines[host.name] or 0) + entry[2]
    end
    if endpoint.closed <= now then
      if not waits then
        -- Two deliveries for each free slot, so that an endpoint fills up again after a pause.
        promote(p, name, 2 * entry[2])
      elseif fits('zset', p .. 'webhook-parked:' .. name) and redis.call('EXISTS', p .. 'webhook-parked:' .. name) == 1 then
        join_line(host, endpoint)
      end
    end
  end
  for name, places in pairs(lines) do
    local host = host_of(name)
    serve_line(host, math.min(terms.host_concurrency - host.used, 2 * places))
  end
end
