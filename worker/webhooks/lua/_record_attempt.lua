-- Shared step: record how an attempt ended, and update the state of its endpoint.
-- Needs finish_delivery, shared_states and count_attempts before it.
-- An end: {id, attempt, state: delivered | waiting | dead, the attempt's record, wait_ms, status or '',
--   error or '', charged, breaker: alive | failing | none, slow down, pause_ms or -1,
--   endpoint: takes | refuses | gone | none, random in [0, 1), and of the history (_count_attempts.lua): bucket of
--   the attempt's time | -1, bucket of its wait, us of each}

-- Whether an end changes nothing of its endpoint: most do.
local function is_well(endpoint, e)
  return e[9] ~= 'failing' and not e[10] and (e[12] == 'takes' or e[12] == 'none') and endpoint.failures == 0
    and endpoint.opens == 0 and not endpoint.share and not endpoint.since and endpoint.refusals == 0
end

-- Made by the first end that changes its endpoint.
local change_endpoint
local function prepare_changes()
  if change_endpoint then
    return
  end
  --@rights of writes HGET ZCARD ZCOUNT ZRANGE ZSCORE
  --@include endpoints
  --@include endpoint_signs
  change_endpoint = function(endpoint, e, id, said)
    if e[9] == 'alive' then
      endpoint_answers(endpoint, e[10], said)
    elseif e[9] == 'failing' then
      endpoint_fails(endpoint, e[13], said)
    end
    if e[10] then
      endpoint_is_slow(endpoint_of(endpoint.name), e[11], e[13])
    end
    endpoint_says(endpoint_of(endpoint.name), e[12], id, said)
  end
end

local NO_COUNTS = {}
-- freed: as for `serve`
-- returns {0} another run has begun a later attempt or ended the delivery: nothing written
--       | {1, event, ...}: circuit_opened | circuit_closed | endpoint_disabled
local function record(e, freed)
  local id, state = e[1], e[3]
  local key = p .. 'webhook:' .. id
  local f = redis.call('HMGET', key, 'state', 'attempts', 'endpoint', 'host', 'order', 'on_end', 'replays', 'parked', 'internal_failures',
    'uncharged')
  if f[1] ~= 'sending' or number_of(f[2]) ~= e[2] then
    return {0}
  end
  local name, said = f[3], {1}
  local endpoint, host = endpoint_of(name), host_of(f[4] or '')
  local d = {endpoint = name, order = f[5], on_end = f[6], replays = f[7], parked = f[8]}
  if state ~= 'waiting' then
    expect_end(p, state, d)
  end
  local well = is_well(endpoint, e)
  if not well then
    prepare_changes()
    if e[12] ~= 'takes' and e[12] ~= 'none' then
      expect('zset', p .. 'webhook-disabled', p .. 'webhook-failing')
    end
  end
  redis.call('LSET', p .. 'webhook-attempts:' .. id, -1, e[4])
  give_slot_back(host, endpoint, id)
  if endpoint.probe == id then
    redis.call('HDEL', endpoint.limits, 'probe', 'probe_until')
    endpoint.probe = false
  end
  -- What counts goes with the state, so that an end that is sent again counts once.
  local counts = NO_COUNTS
  if not e[8] then
    counts = {'uncharged', number_of(f[10], 0) + 1, 'internal_failures', number_of(f[9], 0) + 1}
  elseif number_of(f[9], 0) > 0 then
    counts = {'internal_failures', 0}
  end
  if state == 'waiting' then
    local due = now + e[5]
    -- No wake makes it due before `after`.
    redis.call('HSET', key, 'state', state, 'status', e[6], 'error', e[7], 'next', due, 'after', due, unpack(counts))
  else
    finish(p, id, state, e[6], e[7], now, terms.retention, d, terms.report, counts)
  end
  if freed[name] then
    freed[name][2] = freed[name][2] + 1
  else
    freed[name] = {host.name, 1}
  end
  count_attempt(name, state, false, e[14], e[15], e[16], e[17])
  if not well then
    change_endpoint(endpoint, e, id, said)
  end
  return said
end
