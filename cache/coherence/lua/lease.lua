#!lua
-- lease.lua: grant, renew or take the right to load one value. One holder at a time.
-- KEYS[1] version of the entry  KEYS[2] value  KEYS[3] lease  KEYS[4] intents (not to renew)
--   (one hash tag, one slot)
-- ARGV[1] token, 8 bytes  ARGV[2] lease_ms > 0  ARGV[3] fill id of the value that the caller read,
-- or ''  ARGV[4] 'grant' | 'renew' (only while held) | 'steal' (a writer takes it from any holder)
-- returns {1, version, now_us} granted | {0, left_ms} held by another | {2} the stored value is not
--         the one that the caller read: read again | {3} nothing to renew
--         | {4} a write is under way: load, but store nothing
-- A lease holds the token, a flag, the time of the grant (16 digits, us), and the version that it was
-- granted under. Flag: '1' when others wait for it, '2' when appends are kept aside for it
-- (messages_append.lua), '3' both, '0' none. An invalidation deletes the version, and with it every
-- lease and value under it.
-- The next grant makes a new version from the time, so no version is used twice: a late copy of
-- this command cannot restore the right of an older load.
-- no allow-oom: a full server could not store the value; it is a miss.
local token, mode = ARGV[1], ARGV[4]
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])
-- rule intent
if mode ~= 'renew' then
  local last = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')
  if last[2] and tonumber(last[2]) > tonumber(now_us) then
    return {4}
  end
end
-- end of rule
local version, held = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[3])
if held and string.sub(held, 26) ~= version then
  held = nil
end
local mine = held and string.sub(held, 1, 8) == token

if mode == 'renew' then
  if not mine then
    return {3}
  end
elseif held and not mine and mode == 'grant' then
  redis.call('SETRANGE', KEYS[3], 8, string.sub(held, 9, 9) < '2' and '1' or '3')
  return {0, math.max(redis.call('PTTL', KEYS[3]), 1)}
elseif mode == 'grant' then
  local id = redis.call('GETRANGE', KEYS[2], 8, 15)
  if id ~= '' and id ~= ARGV[3] then
    return {2}
  end
end
if not version then
  -- rule new_version
  version = now_us
  -- end of rule
  redis.call('SET', KEYS[1], version)
end
local waiting = held and string.sub(held, 9, 9) or '0'
local granted = mine and string.sub(held, 10, 25) or now_us
redis.call('SET', KEYS[3], token .. waiting .. granted .. version, 'PX', ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return {1, version, now_us}
