-- Shared step: add an endpoint to the line of its host, which is full. Needs p and now before it.
-- The line of a host has the endpoints whose deliveries found it full; the one that was served longest ago
-- is first. It expires when no delivery has looked for LINE_TTL_MS; parked ones look every 60 s or sooner.
local LINE_TTL_MS = 120000
local function join_line(host, endpoint)
  host.waiting = host.waiting + redis.call('ZADD', host.line, 'NX', now, endpoint.name)
  redis.call('PEXPIRE', host.line, LINE_TTL_MS)
end
