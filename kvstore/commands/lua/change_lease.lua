-- Change how long a job is leased, or give it back.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 If-Match, the lease  3 ms from now for which it is leased, 0 to give it back
--        4 ms for which it is held back then  5 why, percent-encoded, '-' for nothing
-- reply  {'changed', what is there, the lease or '-'}, {'missing'}, {'leased'}, {'failed', what is there}

-- Let those who wait for a job look again.
local function wake_takers(name)
  redis.call('XADD', RELEASED, 'MAXLEN', 1, '*', 'name', name)
  keep_as_names(RELEASED)
end

local function change_lease(key, at)
  local name, match = ARGV[at], ARGV[at + 1]
  local exists, tag, meta, job = inspect(key)
  if not exists then
    return {'missing'}
  end
  local refusal = refuse(key, exists, tag, job, match, '', '')
  if refusal or not is_leased(job) then
    return refusal or {'failed', read(key)}
  end
  check_types(name)
  check_queue_types()
  local lease_ms, delay_ms, now = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), clock()
  unblock(name) -- the first write is one that a full Redis lets through: who works on a job keeps it
  if lease_ms > 0 then
    write_mark(key, meta, job.attempts, job.most_attempts, now + lease_ms, job.lease, job.reason)
    block(name, now + lease_ms)
    if now + lease_ms < job.ready_at then
      wake_takers(name)
    end
    return {'changed', read(key), job.lease}
  end
  write_mark(key, meta, job.attempts, job.most_attempts, now + delay_ms, '-', ARGV[at + 4])
  if delay_ms > 0 then
    block(name, now + delay_ms)
  end
  wake_takers(name)
  return {'changed', read(key), '-'}
end
