-- Shared step: how long a claim stands after its last renewal, ms.
-- The more workers a job has lost, the longer it waits for the next: a job that takes its worker
-- down does not do so again within seconds. No delay after the first loss.
local function lease_of(lease, stalled)
  return lease + math.floor(lease / 5 * (2 ^ math.min(stalled, 5) - 1))
end
