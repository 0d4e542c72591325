-- Shared step: give the slots that ends have freed to parked deliveries.
-- Needs promote and shared_states before it. It runs after all records: an error must not undo them.

-- freed: endpoint -> {host, number of slots that its ends have freed}
local function serve(freed)
  local lines, is_line = {}, false
  for name, entry in pairs(freed) do
    local host, endpoint = host_of(entry[1]), endpoint_of(name)
    local waits = host.waiting > 0
    if waits then
      lines[host.name], is_line = (lines[host.name] or 0) + entry[2], true
    end
    if endpoint.closed <= now then
      if not waits then
        -- Two deliveries for each free slot, so that an endpoint fills up again after a pause.
        promote(p, name, 2 * entry[2])
      elseif fits('zset', p .. 'webhook-parked:' .. name) and redis.call('EXISTS', p .. 'webhook-parked:' .. name) == 1 then
        --@include join_line
        join_line(host, endpoint)
      end
    end
  end
  if is_line then
    --@include serve_line
    for name, places in pairs(lines) do
      local host = host_of(name)
      serve_line(host, math.min(terms.host_concurrency - host.used, 2 * places))
    end
  end
end
