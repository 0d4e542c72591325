-- record_delivery.lua: write down how an attempt ended, and what it says of host and endpoint.
-- KEYS[1] delivery  KEYS[2] attempts; and those of _delivery.lua
-- ARGV[1] prefix  ARGV[2] delivery id  ARGV[3] attempt
-- ARGV[4] state: delivered | waiting | dead  ARGV[5] the attempt's record
-- ARGV[6] wait_ms until the next (waiting)  ARGV[7] retention_ms (ended)
-- ARGV[8] status, or ''  ARGV[9] error, or ''  ARGV[10] charged: 1 | 0
-- ARGV[11] body of the job that reports its end
-- ARGV[12] host: alive | failing | none  ARGV[13] slow down: 1 | 0  ARGV[14] pause_ms, or ''
-- ARGV[15] endpoint: takes | refuses | gone | none
-- ARGV[16] most attempts at once  ARGV[17] failures that open the breaker, 0: never
-- ARGV[18] open_ms  ARGV[19] open_max_ms  ARGV[20] disable_after_ms, 0: never  ARGV[21] random in [0, 1)
-- returns {0} another run has begun a later attempt, or ended it: nothing written
--       | {1, event, ...}: circuit_opened | circuit_closed | endpoint_disabled
-- Compare-and-set on the attempt's number, so that it can be sent again.
--@include put_job
--@include delivery
local p, id, state = ARGV[1], ARGV[2], ARGV[4]
local f = redis.call('HMGET', KEYS[1], 'state', 'attempts', 'lane', 'endpoint', 'order', 'on_end', 'replays')
if f[1] ~= 'sending' or f[2] ~= ARGV[3] then
  return {0}
end
local now = server_ms()
local lane, endpoint = f[3], f[4]
local lane_key = p .. 'webhook-lane:' .. lane
local room, said = tonumber(ARGV[16]), {1}

redis.call('LSET', KEYS[2], -1, ARGV[5])
redis.call('ZREM', p .. 'webhook-slots:' .. lane, id)
if ARGV[10] == '0' then
  redis.call('HINCRBY', KEYS[1], 'free', 1)
  redis.call('HINCRBY', KEYS[1], 'own', 1)
else
  redis.call('HDEL', KEYS[1], 'own')
end
if state == 'waiting' then
  redis.call('HSET', KEYS[1], 'state', state, 'status', ARGV[8], 'error', ARGV[9], 'next', now + tonumber(ARGV[6]))
else
  local d = {lane = lane, order = f[5], on_end = f[6], replays = f[7]}
  finish(p, id, state, ARGV[8], ARGV[9], now, ARGV[7], d, ARGV[11])
end

-- The host: its breaker, and how much it is sent at once.
local function host_answers(row)
  if row[1] or row[2] then
    redis.call('HDEL', lane_key, 'failures', 'opens', 'open_until', 'probe', 'probe_until')
    if row[2] then
      tell(p, 'circuit_closed', 'lane', lane)
      said[#said + 1] = 'circuit_closed'
      promote(p, lane, room)
    end
  end
  if row[5] and ARGV[13] == '0' then
    redis.call('HDEL', lane_key, 'slow')
    -- What was halved grows back by one for each round of answers.
    local share = tonumber(row[5]) + 1 / tonumber(row[5])
    if share >= room then
      redis.call('HDEL', lane_key, 'share', 'slow')
    else
      redis.call('HSET', lane_key, 'share', share)
    end
  end
end

local function host_fails(row)
  local failures = redis.call('HINCRBY', lane_key, 'failures', 1)
  redis.call('PEXPIRE', lane_key, LANE_TTL_MS)
  local limit = tonumber(ARGV[17])
  local is_open = (tonumber(row[3]) or 0) > now
  if limit > 0 and not is_open and (row[2] or failures >= limit) then
    local opens = redis.call('HINCRBY', lane_key, 'opens', 1)
    local length = math.min(tonumber(ARGV[19]), tonumber(ARGV[18]) * 2 ^ math.min(opens - 1, 30))
    -- Breakers that opened together do not probe together.
    redis.call('HSET', lane_key, 'open_until', now + math.ceil(length * (0.8 + 0.4 * tonumber(ARGV[21]))))
    redis.call('HDEL', lane_key, 'probe', 'probe_until')
    tell(p, 'circuit_opened', 'lane', lane)
    said[#said + 1] = 'circuit_opened'
  end
end

local function host_is_slow(row)
  local slow = 0
  local share = math.min(tonumber(row[5]) or room, room)
  if now - (tonumber(row[6]) or 0) >= 1000 then
    -- One cut for all that was under way when it first said so.
    redis.call('HSET', lane_key, 'share', math.max(1, share / 2), 'cut', now)
    slow = redis.call('HINCRBY', lane_key, 'slow', 1)
  end
  -- Three cuts with no answer between them ask for a rest.
  local pause = tonumber(ARGV[14])
  if not pause and slow >= 3 then
    pause = math.min(60000, 1000 * 2 ^ math.min(slow - 3, 10)) * tonumber(ARGV[21])
  end
  if pause then
    -- A long one concerns this delivery; the host may have said it of one of many tenants.
    local till = now + math.ceil(math.min(pause, tonumber(ARGV[19])))
    redis.call('HSET', lane_key, 'pause', math.max(till, tonumber(row[7]) or 0))
  end
  redis.call('PEXPIRE', lane_key, LANE_TTL_MS)
end

local row = redis.call('HMGET', lane_key, 'failures', 'opens', 'open_until', 'probe', 'share', 'cut', 'pause')
if ARGV[12] == 'alive' then
  host_answers(row)
elseif ARGV[12] == 'failing' then
  host_fails(row)
elseif row[4] == id then
  redis.call('HDEL', lane_key, 'probe', 'probe_until')
end
if ARGV[13] == '1' then
  host_is_slow(row)
end

-- The endpoint: since when it has taken nothing.
local key = p .. 'webhook-endpoint:' .. endpoint
if ARGV[15] == 'takes' then
  if redis.call('HEXISTS', key, 'disabled') == 0 then
    redis.call('DEL', key)
  end
elseif ARGV[15] ~= 'none' and redis.call('HEXISTS', key, 'disabled') == 0 then
  redis.call('HSETNX', key, 'failing_since', now)
  local failures = redis.call('HINCRBY', key, 'failures', 1)
  redis.call('HSET', key, 'name', redis.call('HGET', KEYS[1], 'url'))
  redis.call('PEXPIRE', key, ENDPOINT_TTL_MS)
  local after = tonumber(ARGV[20])
  local since = tonumber(redis.call('HGET', key, 'failing_since'))
  if ARGV[15] == 'gone' then
    disable(p, endpoint, 'gone', now)
    said[#said + 1] = 'endpoint_disabled'
  elseif after > 0 and failures >= 5 and now - since >= after then
    disable(p, endpoint, 'failing', now)
    said[#said + 1] = 'endpoint_disabled'
  end
end

-- One place is free: two may come, so that a lane fills up again after a pause.
if closed_until(p, lane) <= now then
  promote(p, lane, 2)
end
return said
