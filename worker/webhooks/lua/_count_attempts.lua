-- Shared step: count how attempts ended, by endpoint. Needs types and series before it.
-- The outcomes have the numbers of a job's (worker/queue/series.py): a delivery that ends because its endpoint
-- is disabled counts as aborted, an attempt that a crash interrupted as lapsed.
local OUTCOMES = {delivered = 1, waiting = 2, dead = 3, disabled = 4}
local REPLACED_AFTER_MINUTES = 60

local attempt_rows = {}  -- endpoint -> what this call counts of it

-- state: of the delivery after it | '': it was interrupted  run: bucket of its time | -1: none was made
local function count_attempt(endpoint, state, interrupted, run, wait, run_us, wait_us)
  attempt_rows[endpoint] = attempt_rows[endpoint] or {}
  collect(attempt_rows[endpoint], 1, OUTCOMES[state] or 0, interrupted and 1 or 0, run or -1, wait, run_us, wait_us)
end

-- Call it once, after all that may fail.
local function count_attempts(p, now)
  local store = {base = p .. 'webhook-history', idle = REPLACED_AFTER_MINUTES}
  pcall(count_rows, store, now, attempt_rows, function()
    return '<other>'
  end)
end
