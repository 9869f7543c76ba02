-- Put what a job has become in its place, a dead job where the dead are or a result, if nobody has taken the job since.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the job's name in names and log  3 the job's lease
--        4… as in put.lua, of what it has become
-- reply  {'moved', as in put.lua the ms at which the namespace's own keys expire}, {'lost'} where the lease is another, or
--        somebody has leased what stands in that place: nothing is changed

local function move_job(_, at, last)
  local prefix, name = ARGV[at], ARGV[at + 1]
  local key = prefix .. name
  local exists, tag, _, job = inspect(key)
  if not exists or not job or job.lease ~= ARGV[at + 2] then
    return {'lost'}
  end
  local reply = put(prefix .. ARGV[at + 3], at + 3, last)
  if reply[1] == 'leased' then -- a dead one of that name, by somebody who looks into it: this one stays until that is over
    return {'lost'}
  end
  remove(key, name, ARGV[at + 5])
  erase_changes(name, tag)
  unblock(name)
  return {'moved', reply[6]}
end
