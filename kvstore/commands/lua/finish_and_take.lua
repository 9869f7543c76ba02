-- Store a job's result and delete the job, then take the next one: one call for a worker that is busy.
-- KEYS   1 log
-- ARGV   1…8 as in take.lua  9… as in move_job.lua
-- reply  {'finished', as in put.lua the ms at which the namespace's own keys expire, what take.lua answers or nil where Redis
--        refused that}, {'lost'} as in move_job.lua: then nothing is taken

local function finish_and_take(_, at, last)
  local finished = move_job(nil, at + 8, last)
  if finished[1] ~= 'moved' then
    return finished
  end
  local ok, taken = pcall(take, nil, at) -- what was finished is finished
  return {'finished', finished[2] or false, ok and taken or nil}
end
