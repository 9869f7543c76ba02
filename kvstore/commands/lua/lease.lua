-- Change how long a job is leased, or give it back.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 If-Match, the lease  3 ms from now for which it is leased, 0 to give it back
--        4 ms for which it is held back then  5 why, percent-encoded, '-' for nothing
-- reply  {'held', what is there, the lease or '-'}, {'missing'}, {'leased'}, {'failed', what is there}

-- Let those who wait for a job look again.
local function ring(rest)
  redis.call('XADD', FREED, 'MAXLEN', 1, '*', 'rest', rest)
  keep_as_names(FREED)
end

local function lease(key, at)
  local rest, match = ARGV[at], ARGV[at + 1]
  local exists, tag, meta, job = look(key)
  if not exists then
    return {'missing'}
  end
  local refusal = refuse(key, exists, tag, job, match, '', '')
  if refusal or not is_leased(job) then
    return refusal or {'failed', read(key)}
  end
  check_types(rest)
  check_queue_types()
  local lease_ms, delay_ms, now = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), clock()
  forget(rest) -- the first write is one that a full Redis lets through: who works on a job keeps it
  if lease_ms > 0 then
    write_mark(key, meta, job.attempts, now + lease_ms, job.lease, job.reason)
    hold(rest, now + lease_ms)
    if now + lease_ms < job.held_until then
      ring(rest)
    end
    return {'held', read(key), job.lease}
  end
  write_mark(key, meta, job.attempts, now + delay_ms, '-', ARGV[at + 4])
  if delay_ms > 0 then
    hold(rest, now + delay_ms)
  end
  ring(rest)
  return {'held', read(key), '-'}
end
