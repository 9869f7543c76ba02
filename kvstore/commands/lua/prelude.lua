-- What the writing scripts share; it stands before each of them, and their own functions behind it. A function that carries
-- out a request takes the document's key and where its arguments stand in ARGV, so that a batch can call it as well.
-- No JSON value is ever decoded in Lua: cjson would turn 1.0 into 1 and [] into {}.

-- KEYS   1 the namespace's change log; what follows is at each script's head. The namespace's other keys stand here in
--        capitals, NAMES for one: paths.py lists them, scripts.py puts them in.
local LOG = KEYS[1]

local MOST_ARGUMENTS = 7000 -- of one call: unpack of 8,000 overflows Lua's stack. Even, so that pairs stay together
local MOST_ENTRIES = 1000000000 -- of a log that is not trimmed
local MOST_TRIMMED = 1000 -- by one change, where more came untrimmed: who reads it has time. A node of a stream has fewer
local LOG_BYTES = 4194304 -- of a change log, about: the larger a change, the fewer stay
local DAY_MS = 86400000
local later -- nil, but in an atomic batch, which trims the log when it is done: how many entries stay then, at most

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What is known of a job stands before the rest of our own field: how often it was taken, the ms until which it cannot be taken,
-- its lease or '-', and why it was given back, percent-encoded, or '-'. Returns that, and the rest; nil where it is no job.
local function read_mark(meta)
  local mark, attempts, held_until, lease, reason, rest = string.match(meta, '^(job (%d+) (%d+) (%S+) (%S+)\n)(.*)$')
  if mark then
    return {mark = mark, attempts = tonumber(attempts), held_until = tonumber(held_until), lease = lease, reason = reason}, rest
  end
end

-- Whether a document is there, its entity-tag (nil: another client's hash), our own field, and what is known of it as a job
-- (nil: nothing). Raises WRONGTYPE.
local function look(key)
  local meta = redis.call('HGET', key, '$kv')
  if meta then
    local tag = string.match(meta, '^(%d+%-%d+) ')
    if tag then
      return true, tag, meta
    end
    local job, rest = read_mark(meta)
    if job then
      return true, string.match(rest, '^(%d+%-%d+) '), rest, job
    end
    return true, nil, meta
  end
  return redis.call('EXISTS', key) == 1, nil, nil
end

-- Whether somebody has taken a job and not given it back.
local function is_leased(job)
  return job ~= nil and job.lease ~= '-' and job.held_until > clock()
end

-- Whether a document is not an object.
local function is_scalar(tag, meta)
  return tag and string.sub(meta, #tag + 1, #tag + 6) == ' value'
end

-- What is there: {fields, expires_at_ms, ttl_ms}, both times -1 where it does not expire; false where nothing is.
local function read(key)
  local fields = redis.call('HGETALL', key)
  if #fields == 0 then
    return false
  end
  return {fields, redis.call('PEXPIRETIME', key), redis.call('PTTL', key)}
end

-- Whether a precondition fails (RFC 9110 section 13.2.2). `match` and `none_match` are '', '*' or ' tag tag '.
local function fails(exists, tag, match, none_match, unmodified_since_s)
  if match ~= '' then
    if not exists then
      return true
    end
    if match ~= '*' and not (tag and string.find(match, ' ' .. tag .. ' ', 1, true)) then
      return true
    end
  elseif unmodified_since_s ~= '' and tag then
    if math.floor(string.match(tag, '^%d+') / 1000) > tonumber(unmodified_since_s) then
      return true
    end
  end
  if none_match == '*' then
    return exists
  end
  return none_match ~= '' and tag and string.find(none_match, ' ' .. tag .. ' ', 1, true) and true or false
end

-- The reply to a write that a lease or a precondition refuses, nil where none does. While a job is leased its lease takes the
-- place of the entity-tag.
local function refuse(key, exists, tag, job, match, none_match, unmodified_since_s)
  if match ~= '*' and is_leased(job) then
    if match == '' then
      return {'leased'}
    end
    if not string.find(match, ' ' .. job.lease .. ' ', 1, true) then
      return {'failed', read(key)}
    end
    match = ''
  end
  if fails(exists, tag, match, none_match, unmodified_since_s) then
    return {'failed', read(key)}
  end
end

-- Look at the types of the namespace's keys before anything is written, and at the ms at which the expiry index has `rest`
-- expire (nil: it does not know it).
local function check_types(rest)
  redis.call('ZCARD', NAMES)
  redis.call('XLEN', LOG)
  return redis.call('ZSCORE', EXPIRY, rest) or nil
end

-- The same for the keys of queues.
local function check_queue_types()
  redis.call('ZCARD', HELD)
  redis.call('ZCARD', UNTIL)
  redis.call('XLEN', FREED)
end

-- Where the first write of a script is one like this, a full Redis lets it through, and with it the rest of the script.
local function write_nothing()
  redis.call('DEL', SCRATCH)
end

-- Append a document's change to the log and return its id, which is the document's entity-tag, and its time in ms. An entry
-- is three pairs of ours, then the members: {op, rest, 'ttl', ttl_ms, '$kv', shape, field, value, ...}. A document with too
-- many members for one call has '$packed' for '$kv', then '' and all of it as netstrings (3:abc,).
local function append(length, op, rest, ttl_ms, shape, fields, first, last)
  local bytes = #shape
  for i = first, last do
    bytes = bytes + #fields[i]
  end
  local keep = bytes * length > LOG_BYTES and math.max(1, math.floor(LOG_BYTES / bytes)) or length
  if later then
    later, keep = math.min(later + 1, keep), MOST_ENTRIES
  end
  local id
  if last - first < MOST_ARGUMENTS then
    id = redis.call('XADD', LOG, 'MAXLEN', '~', keep, 'LIMIT', MOST_TRIMMED, '*', op, rest, 'ttl', ttl_ms, '$kv', shape,
      unpack(fields, first, last))
  else
    local packed = {}
    for i = first, last do
      packed[#packed + 1] = #fields[i] .. ':' .. fields[i] .. ','
    end
    packed = table.concat(packed)
    id = redis.call('XADD', LOG, 'MAXLEN', '~', keep, 'LIMIT', MOST_TRIMMED, '*', op, rest, 'ttl', ttl_ms, '$packed', shape, '',
      packed)
  end
  return id, tonumber(string.match(id, '^%d+'))
end

-- What Redis knows of the log, which is there.
local function log_facts()
  local facts, known = redis.call('XINFO', 'STREAM', LOG), {}
  for i = 1, #facts, 2 do
    known[facts[i]] = facts[i + 1]
  end
  return known
end

-- The id of the namespace's last change, also where the log holds none any more; nil where there is no log.
local function last_change()
  local last = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1]
  if last then
    return last[1]
  end
  if redis.call('EXISTS', LOG) == 1 then
    return log_facts()['last-generated-id']
  end
end

-- Where the log ends: the id of the last change, or where there is no log the time, with a count that no change has.
local function end_of_log()
  -- A ms earlier, since the first change may come within this one.
  return last_change() or string.format('%.0f-999999999', clock() - 1)
end

local function slice(list, first, last)
  local part = {}
  for i = first, last do
    part[#part + 1] = list[i]
  end
  return part
end

-- The names below a container, as ZRANGEBYLEX takes a range. A slash is followed by a 0 in the order of bytes.
local function range_below(container)
  if container == '' then
    return '-', '+'
  end
  return '[' .. container, '(' .. string.sub(container, 1, -2) .. '0'
end

-- HSET of fields[first..last], in as many calls as it takes.
local function set(key, fields, first, last)
  for from = first, last, MOST_ARGUMENTS do
    redis.call('HSET', key, unpack(fields, from, math.min(from + MOST_ARGUMENTS - 1, last)))
  end
end

-- Let all keys of the namespace live until then.
local function live_until(at)
  at = string.format('%.0f', at)
  for _, key in ipairs({LOG, NAMES, EXPIRY, HELD, UNTIL, FREED}) do
    redis.call('PEXPIREAT', key, at)
  end
end

-- Note in the namespace's indexes that `rest` is there and expires at `at` (nil: never); `due` is what they say so far (nil:
-- nothing). Their expiry may be early, never late, so that it need not be written with every change: sweep() finds out.
-- They and the log live at least a day longer than the last document, so that a namespace nobody uses leaves nothing.
-- Returns the ms at which they expire where that is new: the root's index must be told.
local function note(rest, due, at)
  if at then
    due = tonumber(due or nil)
    if due and at >= due and due >= at - at % DAY_MS then -- no sooner than it says, and of the same day
      return false
    end
    redis.call('ZADD', EXPIRY, string.format('%.0f', at), rest)
  end
  if not due then
    redis.call('ZADD', NAMES, 0, rest)
  end
  local last = at and (math.floor(at / DAY_MS) + 2) * DAY_MS or 4102444800000 -- the year 2100
  if redis.call('PEXPIRETIME', NAMES) < last then
    live_until(last)
    return string.format('%.0f', last)
  end
  return false
end

-- Let a key of the namespace live as long as its names; where there are none it goes.
local function keep_as_names(key)
  local expires_at = redis.call('PTTL', key) == -1 and redis.call('PEXPIRETIME', NAMES)
  if expires_at and expires_at ~= -1 then
    redis.call('PEXPIREAT', key, string.format('%.0f', expires_at))
  end
end

-- Where no document is left the log goes too, though not before a day has passed: changes.lua relies on that.
local function fade()
  if redis.call('EXISTS', NAMES) == 0 then
    live_until(clock() + 2 * DAY_MS)
  else
    keep_as_names(LOG)
  end
end

-- A job cannot be taken until then.
local function hold(rest, held_until)
  redis.call('ZADD', HELD, 0, rest)
  redis.call('ZADD', UNTIL, string.format('%.0f', held_until), rest)
  keep_as_names(HELD)
  keep_as_names(UNTIL)
end

-- Note that a container is worked as a queue, so that its listing says what its documents are as jobs. A document's name does not
-- end in a slash.
local function work_as_queue(container)
  redis.call('ZADD', UNTIL, 'inf', container .. '/')
  keep_as_names(UNTIL)
end

-- Write what is known of a job; `meta` is what look() returned.
local function write_mark(key, meta, attempts, held_until, lease, reason)
  local known = string.format('job %d %.0f %s %s\n', attempts, held_until, lease, reason)
  redis.call('HSET', key, '$kv', known .. meta)
end

-- A document that may have been a job is gone, or a job can be taken.
local function forget(rest)
  redis.pcall('ZREM', HELD, rest) -- of another type by another client's hand: not this request's concern
  redis.pcall('ZREM', UNTIL, rest)
end

-- Say in the log that a document has expired.
local function expire(rest)
  redis.call('XADD', LOG, '*', 'expire', rest)
  forget(rest)
end

-- Put ARGV[first..last] in the place of all that a document holds, and say so in the log and the indexes: how many fields it
-- has (0: it is not there), `mark`, what is known of it as a job, and `due`, as note() takes it, are known by now, and so is that
-- no key has another type. The first write is XADD, which a full Redis refuses with nothing changed. `expires_at` is -1 for
-- never, nil for ttl_ms from now on. Returns the entity-tag, expires_at, the time in ms, and what note() returns.
local function replace(key, size, mark, due, length, op, rest, ttl_ms, expires_at, shape, first, last)
  local exists = size > 0
  if due and not exists then
    expire(rest)
  end
  local id, now = append(length, op, rest, ttl_ms, shape, ARGV, first, last)
  local meta, stop = mark .. id .. shape, math.min(last, first + MOST_ARGUMENTS - 1)
  -- A document with as many fields as it will have, none of them new, is written over: DEL and making a hash cost more.
  local is_over = size * 2 == last - first + 3 and stop == last
  if not is_over or redis.call('HSET', key, '$kv', meta, unpack(ARGV, first, stop)) > 0 then
    if exists then
      redis.call('DEL', key)
    end
    redis.call('HSET', key, '$kv', meta, unpack(ARGV, first, stop))
    set(key, ARGV, stop + 1, last)
  end
  if not expires_at then
    redis.call('PEXPIRE', key, ttl_ms)
    expires_at = now + ttl_ms
  elseif expires_at >= 0 then
    redis.call('PEXPIREAT', key, expires_at)
  end
  return id, expires_at, now, note(rest, exists and due, expires_at >= 0 and expires_at)
end

-- Take a document that is no longer there out of the indexes, and say so in the log. Its first write is one that a full
-- Redis lets through.
local function vanish(rest)
  redis.call('ZREM', EXPIRY, rest)
  redis.pcall('ZREM', NAMES, rest) -- as in forget()
  if string.sub(rest, -1) ~= '/' then -- no namespace, as the root's index has them
    expire(rest)
  end
  fade()
end

-- Delete a document that is there. DEL is the first write: a full Redis lets it through, and with it the rest of the script.
-- Returns the change's id.
local function remove(key, rest, length)
  redis.call('DEL', key)
  redis.call('ZREM', NAMES, rest)
  redis.call('ZREM', EXPIRY, rest)
  if later then
    later, length = math.min(later + 1, length), MOST_ENTRIES
  end
  local id = redis.call('XADD', LOG, 'MAXLEN', '~', length, 'LIMIT', MOST_TRIMMED, '*', 'delete', rest)
  fade()
  return id
end

-- Move up to `most` expired documents of the namespace from the indexes into the log. A document that another client kept
-- alive, or made immortal, is still there. Returns how many were due.
local function sweep(prefix, now, most)
  local due = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', string.format('(%.0f', now), 'LIMIT', 0, most)
  for _, rest in ipairs(due) do
    local at = redis.call('PEXPIRETIME', prefix .. rest)
    if at == -2 then
      vanish(rest)
    elseif at == -1 then
      redis.call('ZREM', EXPIRY, rest)
    else
      write_nothing() -- containers are read all the same
      redis.call('ZADD', EXPIRY, at, rest)
    end
  end
  return #due
end

-- Server values (Firebase's): where a value in ARGV[first..last] is '@' it becomes the time in ms, where it is '+n' the sum of
-- n and the integer that is stored there (0 where nothing is); JSON texts start with neither. Returns the name of a field of
-- which there is no sum. Numbers of Lua have 53 bits, so Redis adds.
local function resolve(key, first, last)
  local now = string.format('%.0f', clock())
  for i = first, last, 2 do
    local value = ARGV[i]
    local kind = string.sub(value, 1, 1)
    if kind == '@' then
      ARGV[i] = now
    elseif kind == '+' then
      redis.call('SET', SCRATCH, key and redis.call('HGET', key, ARGV[i - 1]) or '0', 'PX', 1000)
      local sum = redis.pcall('INCRBY', SCRATCH, string.sub(value, 2))
      ARGV[i] = redis.call('GET', SCRATCH)
      redis.call('DEL', SCRATCH)
      if type(sum) == 'table' then
        return ARGV[i - 1]
      end
    end
  end
end
