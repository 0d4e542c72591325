#!lua flags=allow-oom
-- switch_endpoint.lua: enable or disable an endpoint by hand.
-- KEYS[1] endpoint; and those of _delivery.lua
-- ARGV[1] prefix  ARGV[2] endpoint  ARGV[3] on | off  ARGV[4] name, to show
-- returns 1 switched | 0 nothing changed
-- allow-oom: an operator must be able to stop an endpoint on a full server.
--@rights
--@include types
--@include put_job
--@include delivery
--@include promote
--@include endpoints
local p, endpoint = ARGV[1], ARGV[2]
expect_endpoints(p)
expect('hash', p .. 'webhook-limits:' .. endpoint)
local is_off = redis.call('HEXISTS', KEYS[1], 'disabled') == 1
if ARGV[3] == 'off' then
  if is_off then
    return 0
  end
  redis.call('HSET', KEYS[1], 'name', ARGV[4])
  redis.call('HDEL', KEYS[1], 'named_by')
  disable(p, endpoint, 'by_hand', server_ms())
  return 1
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', p .. 'webhook-disabled', endpoint)
redis.call('ZREM', p .. 'webhook-failing', endpoint)
-- The operator says that it works, so the breaker closes without a probe.
redis.call('HDEL', p .. 'webhook-limits:' .. endpoint, 'failures', 'opens', 'open_until', 'probe', 'probe_until', 'pause')
promote(p, endpoint, 2)
if not is_off then
  return 0
end
add_event(p, 'endpoint_enabled', endpoint)
return 1
