-- Take jobs: documents directly below a container, in order of name, that nobody has taken and that need not wait.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 ms for which they are leased  4 most jobs  5 most takes of a job, '' where that is not named: one that had so many is
--        dead, where no other take of it has named more  6 most bytes of values  7 where to go on, '' for the first: what 'more'
--        said  8 most takes of a job of which no take has named any
-- reply  {'taken', jobs}; {'none', the ms after which one may be ready by itself or nil, the log's place, the place in what is
--        released}; {'dead', jobs} where there are dead ones before any other: they are leased to whoever buries them, and then
--        it is asked again; {'more', where to go on, the log's place, the place in what is released} where there is so much that
--        is no job that Redis does something else in between. A job is {name, what is there, attempts, lease, reason}.

local MOST_DUE = 1000 -- blocks that have ended, in one call
local MOST_PASSED = 1000 -- containers, and jobs that have expired or are blocked after all, in one call
local BURY_MS = 10000 -- that a dead job is leased to whoever buries it
local MOST_DEAD = 100 -- of one call, so that Redis is not held up for long

-- How many of names[first] to names[last], counted from 0, can be taken: those that are not blocked.
local function count_free(first, last)
  local from, to = redis.call('ZRANGE', NAMES, first, first)[1], redis.call('ZRANGE', NAMES, last, last)[1]
  return last - first + 1 - redis.call('ZLEXCOUNT', BLOCKED, '[' .. from, '[' .. to)
end

-- The first name in a range that is not blocked, nil for none. All that is blocked is in names, so counting says where it is: a
-- million delayed jobs cost some twenty steps.
local function first_free(low, high)
  local before_low = (string.sub(low, 1, 1) == '[' and '(' or '[') .. string.sub(low, 2)
  local first = low == '-' and 0 or redis.call('ZLEXCOUNT', NAMES, '-', before_low)
  local last = first + redis.call('ZLEXCOUNT', NAMES, low, high) - 1
  if first > last then
    return nil
  end
  local from, to = first, first -- in steps that double, then halves: the first free one is from `from` on, up to `to`
  while count_free(first, to) == 0 do
    if to == last then
      return nil
    end
    from, to = to + 1, math.min(last, 2 * to - first + 1)
  end
  while from < to do
    local middle = math.floor((from + to) / 2)
    if count_free(first, middle) > 0 then
      to = middle
    else
      from = middle + 1
    end
  end
  return redis.call('ZRANGE', NAMES, from, from)[1]
end

-- Where the log ends, and the stream of what is released: a job that can be taken later shows there.
local function positions()
  local log, released = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1], redis.call('XREVRANGE', RELEASED, '+', '-', 'COUNT', 1)[1]
  return log and log[1] or '0-0', released and released[1] or '0-0'
end

local function take(_, at)
  local prefix, container, lease_ms = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local most, most_attempts, most_bytes = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]) or 0, tonumber(ARGV[at + 5])
  check_types(container)
  check_queue_types()
  local now = clock()
  sweep(prefix, now, 100)
  local due = redis.call('ZRANGEBYSCORE', READY_AT, '-inf', now, 'LIMIT', 0, MOST_DUE)
  for _, name in ipairs(due) do
    unblock(name)
  end
  local low, high = range_below(container)
  if #due == MOST_DUE or (#due > 0 and ARGV[at + 6] ~= '') then -- they may stand before where it went on
    return {'more', '', positions()}
  elseif ARGV[at + 6] ~= '' then
    low = ARGV[at + 6]
  end
  -- A block without an end was lost by another client, or evicted. Each job knows by itself, and is blocked again.
  if redis.call('ZCARD', BLOCKED) > redis.call('ZCOUNT', READY_AT, '-inf', '(inf') then
    redis.call('DEL', BLOCKED)
  end

  local jobs, word, bytes, members, passed = {}, 'taken', 0, 0, 0
  while #jobs < (word == 'dead' and MOST_DEAD or most) and bytes < most_bytes and members < MOST_MEMBERS and passed < MOST_PASSED do
    -- One container after the other is passed by its name alone.
    local name = redis.call('ZRANGEBYLEX', NAMES, low, high, 'LIMIT', 0, 1)[1]
    if name and not string.find(name, '/', #container + 1, true) then
      name = first_free(low, high)
    end
    if not name then
      break
    end
    low = '(' .. name
    local relative = string.sub(name, #container + 1)
    local slash = string.find(relative, '/', 1, true)
    local fields = not slash and relative ~= '' and redis.pcall('HGETALL', prefix .. name) or {}
    if slash then -- what lies deeper is no job; a slash is followed by a 0 in the order of bytes
      low = '[' .. container .. string.sub(relative, 1, slash - 1) .. '0'
      passed = passed + 1
    elseif relative ~= '' and not fields.err and #fields == 0 then
      erasing().record(name)
      passed = (collected or 0) < MOST_ERASED and passed + 1 or MOST_PASSED
    elseif #fields > 0 then
      local _, tag, meta, job = inspect(prefix .. name)
      job = job or {attempts = 0, ready_at = 0, reason = '-'}
      if job.ready_at > now then -- blocked all along
        block(name, job.ready_at)
        passed = passed + 1
      elseif tag then -- another client's hash is no job
        local named = math.max(job.most_attempts or 0, most_attempts)
        local is_dead = job.attempts >= (named > 0 and named or tonumber(ARGV[at + 7]))
        if #jobs > 0 and is_dead ~= (word == 'dead') then
          break
        end
        word = is_dead and 'dead' or 'taken'
        local attempts = is_dead and job.attempts or job.attempts + 1
        local lease = tag .. '.' .. attempts .. (is_dead and '.dead' or '')
        local leased_until = now + (is_dead and BURY_MS or lease_ms)
        write_mark(prefix .. name, meta, attempts, named > 0 and named or nil, leased_until, lease, job.reason)
        block(name, leased_until)
        local found = {fields, redis.call('PEXPIRETIME', prefix .. name), redis.call('PTTL', prefix .. name)}
        jobs[#jobs + 1] = {name, found, attempts, lease, job.reason}
        members = members + #fields / 2
        for _, part in ipairs(fields) do
          bytes = bytes + #part
        end
      end
    end
  end
  work_as_queue(container)
  if #jobs > 0 then
    return {word, jobs}
  elseif passed == MOST_PASSED then
    return {'more', low, positions()}
  end
  local next_ms = redis.call('ZRANGE', READY_AT, 0, 0, 'WITHSCORES')[2]
  local in_ms = next_ms and next_ms ~= 'inf' and math.max(0, next_ms - now) + 1
  return {'none', in_ms or false, positions()}
end
