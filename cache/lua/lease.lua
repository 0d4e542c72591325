-- lease.lua: the right to load one field of an agent's entry, for one holder at a time.
-- KEYS[1] entry hash
-- ARGV[1] field  ARGV[2] token, 8 bytes  ARGV[3] lease_ms > 0
-- ARGV[4] fill id of the value that the caller saw, '' for none
-- ARGV[5] 'grant' | 'renew' (only while held) | 'steal' (a writer's: takes it from any holder)
-- returns {1, floor, now_us} granted | {0, left_ms} held by another | {2} the value is another
--         than the one seen: read again | {3} nothing to renew
-- A lease field is token, '1' when others wait for it or '0', then its end in ms.
-- Asking again with the same token is the same grant, but under the floor of now: a copy of this
-- command that arrives after an invalidation cannot bring an older load's right back.
local key, token, mode = KEYS[1], ARGV[2], ARGV[5]
local value_field, lease_field = 'v' .. ARGV[1], 'l' .. ARGV[1]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local lease_ms = tonumber(ARGV[3])

local waiting, held = '0', redis.call('HGET', key, lease_field)
if held then
  local left_ms = tonumber(string.sub(held, 10)) - now_ms
  waiting = string.sub(held, 9, 9)
  if string.sub(held, 1, 8) ~= token and left_ms > 0 and mode ~= 'steal' then
    if waiting == '0' then
      redis.call('HSET', key, lease_field, string.sub(held, 1, 8) .. '1' .. string.sub(held, 10))
    end
    return {0, left_ms}
  end
end
if mode == 'renew' and (not held or string.sub(held, 1, 8) ~= token) then
  return {3}
end
if mode == 'grant' then
  local value = redis.call('HGET', key, value_field)
  if value and string.sub(value, 9, 16) ~= ARGV[4] then
    return {2}
  end
end
local floor = redis.call('HGET', key, 'f')
if not floor then
  floor = string.format('%.0f', now_us)
  redis.call('HSET', key, 'f', floor)
end
redis.call('HSET', key, lease_field, token .. waiting .. string.format('%.0f', now_ms + lease_ms))
if redis.call('PTTL', key) < lease_ms then
  redis.call('PEXPIRE', key, lease_ms)
end
return {1, floor, string.format('%.0f', now_us)}
