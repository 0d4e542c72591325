-- claim_delivery.lua: begin one attempt of a delivery and count it, if its lane has room for it.
-- KEYS[1] delivery  KEYS[2] attempts (list of msgpack); and those of _delivery.lua
-- ARGV[1] prefix  ARGV[2] delivery id  ARGV[3] the new attempt's record  ARGV[4] most records kept
-- ARGV[5] retention_ms  ARGV[6] body of the job that reports its end
-- ARGV[7] most attempts at once  ARGV[8] attempts a second, 0: any  ARGV[9] slot_ms
-- ARGV[10] most attempts that are charged: those that crashes cut off count, too
-- returns {'skip'} no such delivery, or it has ended
--       | {'end', state, reason} it ends without this attempt
--       | {'wait', ms, reason} held back; nothing was counted
--       | {'go', attempt >= 1, now, [field, value, ...]}
-- An attempt that a crash cut off stays in the list as it was begun. Sent again, it
-- counts a second attempt: the first one was never made.
--@include put_job
--@include delivery
local p, id = ARGV[1], ARGV[2]
local slot_ms = tonumber(ARGV[9])
local f = redis.call('HMGET', KEYS[1], 'state', 'lane', 'endpoint', 'order', 'deadline', 'reserved',
  'parked', 'on_end', 'replays', 'attempts', 'free')
local state, lane, endpoint, order = f[1], f[2], f[3], f[4]
if not state or state == 'delivered' or state == 'dead' or state == 'disabled' then
  return {'skip'}
end
local now = server_ms()
local slots, lane_key = p .. 'webhook-slots:' .. lane, p .. 'webhook-lane:' .. lane
local d = {lane = lane, order = order, on_end = f[8], replays = f[9]}

local function over(how, reason)
  redis.call('ZREM', slots, id)
  finish(p, id, how, '', reason, now, ARGV[5], d, ARGV[6])
  return {'end', how, reason}
end

local function hold(wait, reason)
  if f[5] then
    wait = math.max(1, math.min(wait, tonumber(f[5]) - now))
  end
  if state == 'sending' then
    redis.call('ZREM', slots, id)
    redis.call('HSET', KEYS[1], 'state', 'waiting')
  end
  redis.call('HSET', KEYS[1], 'next', now + math.ceil(wait))
  return {'wait', math.ceil(wait), reason}
end

local function in_line(wait, reason)
  local since = f[7] or now
  redis.call('HSET', KEYS[1], 'parked', since)
  return hold(park(p, lane, id, since, wait), reason)
end

if f[5] and now >= tonumber(f[5]) then
  return over('dead', 'deadline')
end
if tonumber(f[10]) - (tonumber(f[11]) or 0) >= tonumber(ARGV[10]) then
  return over('dead', 'attempts_used_up')
end
if redis.call('HEXISTS', p .. 'webhook-endpoint:' .. endpoint, 'disabled') == 1 then
  return over('disabled', 'endpoint_disabled')
end

if order then
  local line = p .. 'webhook-order:' .. order
  local head = redis.call('ZRANGE', line, 0, 0)[1]
  while head and head ~= id do
    local other = redis.call('HGET', p .. 'webhook:' .. head, 'state')
    if other and other ~= 'delivered' and other ~= 'dead' and other ~= 'disabled' then
      return hold(look_ms(25 * redis.call('ZRANK', line, id)), 'ordered')
    end
    redis.call('ZREM', line, head)
    head = redis.call('ZRANGE', line, 0, 0)[1]
  end
end

local closed, opens = closed_until(p, lane)
if closed > now then
  return in_line(closed - now, 'closed')
end
if opens > 0 then
  local probe = redis.call('HMGET', lane_key, 'probe', 'probe_until')
  if probe[1] and probe[1] ~= id and tonumber(probe[2]) > now then
    return in_line(0, 'probing')
  end
end

redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
local share = tonumber(redis.call('HGET', lane_key, 'share'))
local room = math.min(tonumber(ARGV[7]), math.max(1, math.floor(share or math.huge)))
if redis.call('ZCARD', slots) >= room and not redis.call('ZSCORE', slots, id) then
  return in_line(0, 'busy')
end

local rate = tonumber(ARGV[8])
local reserved = tonumber(f[6])
if rate > 0 and not (reserved and reserved <= now and now - reserved < 10000) then
  local at = math.max(now, tonumber(redis.call('HGET', lane_key, 'next_at')) or 0)
  redis.call('HSET', lane_key, 'next_at', at + 1000 / rate)
  redis.call('PEXPIRE', lane_key, LANE_TTL_MS)
  if at > now then
    redis.call('HSET', KEYS[1], 'reserved', math.floor(at))
    return hold(at - now, 'rate')
  end
end

if opens > 0 then
  redis.call('HSET', lane_key, 'probe', id, 'probe_until', now + slot_ms)
end
redis.call('ZADD', slots, now + slot_ms, id)
-- Never sooner than another worker's places end, whatever its limits are.
redis.call('PEXPIRE', slots, slot_ms, 'NX')
redis.call('PEXPIRE', slots, slot_ms, 'GT')
if f[7] then
  redis.call('ZREM', p .. 'webhook-parked:' .. lane, id)
end
redis.call('HDEL', KEYS[1], 'next', 'parked', 'reserved')
redis.call('HSET', KEYS[1], 'state', 'sending')
local attempt = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[4]), -1)
return {'go', attempt, now, redis.call('HGETALL', KEYS[1])}
