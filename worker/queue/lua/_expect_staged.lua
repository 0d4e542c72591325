-- Shared step: check that a large value is there, which a plain SET stored before (worker/queue/staging.py).
-- Fail, before the first write, if what was sent before is gone.
local function expect_staged(body)
  if type(body) == 'table' and redis.call('EXISTS', body[1]) == 0 then
    error({err = 'STAGED ' .. body[1] .. ' is gone'})
  end
end
