-- What is known of a document as a job, and which jobs are blocked.

-- Let a key of the namespace live as long as its names; where there are none it goes.
local function keep_as_names(key)
  local expires_at = redis.call('PTTL', key) == -1 and redis.call('PEXPIRETIME', NAMES)
  if expires_at and expires_at ~= -1 then
    redis.call('PEXPIREAT', key, string.format('%.0f', expires_at))
  end
end

-- What is known of a job stands before what else stands in our own field: how often it was taken, after a slash the largest
-- max_attempts that a take of it has named, the ms until which it cannot be taken, its lease or '-', and why it was given back,
-- percent-encoded, or '-'. Returns that, and what follows it; nil where it is no job.
local function read_mark(meta)
  local mark, attempts, most, ready_at, lease, reason, name = string.match(meta, '^(job (%d+)/?(%d*) (%d+) (%S+) (%S+)\n)(.*)$')
  if mark then
    return {
      mark = mark, attempts = tonumber(attempts), most_attempts = tonumber(most), ready_at = tonumber(ready_at), lease = lease,
      reason = reason,
    }, name
  end
end

-- Whether a document is there, its entity-tag (nil: another client's hash), our own field, and what is known of it as a job
-- (nil: nothing). Raises WRONGTYPE.
local function inspect(key)
  local meta = redis.call('HGET', key, '$kv')
  if meta then
    local tag = string.match(meta, '^(%d+%-%d+) ')
    if tag then
      return true, tag, meta
    end
    local job, name = read_mark(meta)
    if job then
      return true, string.match(name, '^(%d+%-%d+) '), name, job
    end
    return true, nil, meta
  end
  return redis.call('EXISTS', key) == 1, nil, nil
end

-- Whether somebody has taken a job and not given it back.
local function is_leased(job)
  return job ~= nil and job.lease ~= '-' and job.ready_at > clock()
end

-- Write what is known of a job; `meta` is what inspect() returned.
local function write_mark(key, meta, attempts, most_attempts, ready_at, lease, reason)
  local most = most_attempts and '/' .. most_attempts or ''
  local known = string.format('job %d%s %.0f %s %s\n', attempts, most, ready_at, lease, reason)
  redis.call('HSET', key, '$kv', known .. meta)
end

-- The same for the keys of queues.
local function check_queue_types()
  redis.call('ZCARD', BLOCKED)
  redis.call('ZCARD', READY_AT)
  redis.call('XLEN', RELEASED)
end

-- A job cannot be taken until then.
local function block(name, ready_at)
  redis.call('ZADD', BLOCKED, 0, name)
  redis.call('ZADD', READY_AT, string.format('%.0f', ready_at), name)
  keep_as_names(BLOCKED)
  keep_as_names(READY_AT)
end

-- A document that may have been a job is gone, or a job can be taken.
local function unblock(name)
  redis.pcall('ZREM', BLOCKED, name) -- of another type by another client's hand: not this request's concern
  redis.pcall('ZREM', READY_AT, name)
end

-- Note that a container is worked as a queue, so that its listing says what its documents are as jobs. A document's name does not
-- end in a slash.
local function work_as_queue(container)
  redis.call('ZADD', READY_AT, 'inf', container .. '/')
  keep_as_names(READY_AT)
end
