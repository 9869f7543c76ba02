-- Bury the dead jobs of one take.
-- KEYS   1 log
-- ARGV   of each job how many arguments it has, then these, as in move_job.lua
-- reply  {'moved', as in put.lua the ms at which the namespace's own keys expire}; one that move_job.lua says is lost stays

local function move_dead_jobs(_, at, last)
  local new_expiry = false
  while at <= last do
    local stop = at + ARGV[at]
    new_expiry = move_job(nil, at + 1, stop)[2] or new_expiry
    at = stop + 1
  end
  return {'moved', new_expiry}
end
