-- Shared step: read the endpoints and hosts of one call's deliveries once each.
-- Needs p, now and terms before it. Code that changes an endpoint's hashes must forget it here.
local endpoints, hosts = {}, {}

-- {name, limits, health, slots: keys; used: slots in use; disabled: true | false; since: when it began
--  to fail | false; refusals: failures since then; closed: until when; ...}; times are Unix ms
local function endpoint_of(name)
  local endpoint = endpoints[name]
  if not endpoint then
    local limits, slots = p .. 'webhook-limits:' .. name, p .. 'webhook-slots:' .. name
    local health = p .. 'webhook-endpoint:' .. name
    local h = redis.call('HMGET', health, 'disabled', 'failing_since', 'failures')
    local f = redis.call('HMGET', limits, 'pause', 'open_until', 'opens', 'failures', 'probe', 'probe_until', 'share',
      'cut', 'slow', 'next_at')
    redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
    local pause, open_until = number_of(f[1], 0), number_of(f[2], 0)
    endpoint = {
      name = name, limits = limits, health = health, slots = slots, used = redis.call('ZCARD', slots),
      disabled = h[1] and true or false, since = number_of(h[2]) or false, refusals = number_of(h[3], 0),
      closed = math.max(pause, open_until), pause = pause, open_until = open_until, opens = number_of(f[3], 0),
      failures = number_of(f[4], 0), probe = f[5], probe_until = number_of(f[6], 0), share = number_of(f[7]),
      cut = number_of(f[8], 0), slow = number_of(f[9], 0), next_at = number_of(f[10], 0),
    }
    endpoints[name] = endpoint
  end
  return endpoint
end

local function forget_endpoint(name)
  endpoints[name] = nil
end

-- {name, slots, line: keys; used: slots in use; waiting: endpoints in its line}
local function host_of(name)
  local host = hosts[name]
  if not host then
    local slots, line = p .. 'webhook-host:' .. name, p .. 'webhook-line:' .. name
    host = {name = name, slots = slots, line = line, waiting = redis.call('ZCARD', line)}
    redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
    host.used = redis.call('ZCARD', slots)
    hosts[name] = host
  end
  return host
end

-- An endpoint gets a slot of its host while it holds fewer than twice as many as the host has free. One
-- alone gets two thirds of them, two get two fifths each and so on; the rest is there for the next one.
-- While others wait, it gets no more than an equal share.
local function host_has_room(host, endpoint)
  local free = terms.host_concurrency - host.used
  if free <= 0 or endpoint.used == 0 then
    return free > 0
  end
  local most = 2 * free
  if host.waiting > 0 then
    local others = host.waiting - (redis.call('ZSCORE', host.line, endpoint.name) and 1 or 0)
    most = math.min(most, math.floor(terms.host_concurrency / (others + 1)))
  end
  return endpoint.used < most
end

local function give_slot_back(host, endpoint, id)
  endpoint.used = endpoint.used - redis.call('ZREM', endpoint.slots, id)
  host.used = host.used - redis.call('ZREM', host.slots, id)
end
