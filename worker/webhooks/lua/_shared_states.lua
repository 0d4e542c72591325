-- Shared step: read the targets and endpoints of one call's deliveries once each.
-- Needs p, now and terms before it. Code that changes a target's or an endpoint's hash must forget it here.
local targets, endpoints = {}, {}

-- {key, slots, used: slots in use, closed: until when, ...}; times are Unix ms
local function target_of(name)
  local target = targets[name]
  if not target then
    local key, slots = p .. 'webhook-target:' .. name, p .. 'webhook-slots:' .. name
    local f = redis.call('HMGET', key, 'pause', 'open_until', 'opens', 'failures', 'probe', 'probe_until', 'share',
      'cut', 'slow', 'next_at')
    redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
    local pause, open_until = number_of(f[1], 0), number_of(f[2], 0)
    target = {
      key = key, slots = slots, used = redis.call('ZCARD', slots), closed = math.max(pause, open_until),
      pause = pause, open_until = open_until, opens = number_of(f[3], 0), failures = number_of(f[4], 0),
      probe = f[5], probe_until = number_of(f[6], 0), share = number_of(f[7]), cut = number_of(f[8], 0),
      slow = number_of(f[9], 0), next_at = number_of(f[10], 0),
    }
    targets[name] = target
  end
  return target
end

local function forget_target(name)
  targets[name] = nil
end

-- {key, disabled: true | false, since: when it began to fail | false, failures}
local function endpoint_of(name)
  local endpoint = endpoints[name]
  if not endpoint then
    local key = p .. 'webhook-endpoint:' .. name
    local f = redis.call('HMGET', key, 'disabled', 'failing_since', 'failures')
    endpoint = {key = key, disabled = f[1] and true or false, since = number_of(f[2]) or false,
      failures = number_of(f[3], 0)}
    endpoints[name] = endpoint
  end
  return endpoint
end

local function forget_endpoint(name)
  endpoints[name] = nil
end
