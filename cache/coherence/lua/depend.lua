#!lua
-- depend.lua: record what an agent's value depends on, before the value is stored. For a cluster,
-- where the indexes are on other slots than the value; elsewhere fill.lua does it.
-- KEYS indexes of the dependencies and of the organization
-- ARGV[1] agent  ARGV[2] time of the lease, us  ARGV[3] ttl_ms  ARGV[4] most agents listed
-- ARGV[5] most us since the lease
-- returns 1 recorded | 0 one has changed since the lease, or is about to: do not store
-- no allow-oom: as fill.lua.
--@include depend
local indexes = {unpack(KEYS, 1, #KEYS - 1)}
local members = to_list(indexes, ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5]))
if not members then
  return 0
end
list(indexes, members, ARGV[3])
return 1
