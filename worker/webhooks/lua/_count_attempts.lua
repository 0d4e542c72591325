-- Shared step: count how attempts ended, by endpoint. Needs types and collect before it.
-- The outcomes have the numbers of a job's (worker/queue/series.py): a delivery that ends because its endpoint
-- is disabled counts as aborted, an attempt that a crash interrupted as lapsed.

local attempt_rows = {}  -- endpoint -> what this call counts of it

-- state: of the delivery after it | '': it was interrupted  run: bucket of its time | -1: none was made
local function count_attempt(endpoint, state, interrupted, run, wait, run_us, wait_us)
  local outcome = state == 'delivered' and 1 or state == 'waiting' and 2 or state == 'dead' and 3 or state == 'disabled' and 4
  attempt_rows[endpoint] = attempt_rows[endpoint] or {}
  collect(attempt_rows[endpoint], 1, outcome or 0, interrupted and 1 or 0, run or -1, wait, run_us, wait_us)
end

-- Call it once, after all that may fail.
local function count_attempts(p, now)
  if next(attempt_rows) then
    --@include series unchecked
    pcall(count_rows, {base = p .. 'webhook-history', idle = 60}, now, attempt_rows, function()
      return '<other>'
    end)
  end
end
