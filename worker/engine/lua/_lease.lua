-- Shared step: the length of a claim's lease, ms. stalled: leases of the job that lapsed before.
-- It grows with each lapsed lease, so that a job which crashes its workers does not crash the next
-- one within seconds. The first lease has no extra time: a killed worker's job runs again soon.
local function lease_of(lease, stalled)
  return lease + math.floor(lease / 5 * (2 ^ math.min(stalled, 5) - 1))
end
