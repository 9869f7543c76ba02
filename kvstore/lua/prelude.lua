-- What the writing scripts share; it stands before each of them, and their own functions behind it. A function that carries
-- out a request takes the document's key and where its arguments stand in ARGV, so that a batch can call it as well.
-- No JSON value is ever decoded in Lua: cjson would turn 1.0 into 1 and [] into {}.

-- KEYS   1 the namespace's change log; what follows is at each script's head. The namespace's other keys stand here in
--        capitals, NAMES for one: paths.py lists them, scripts.py puts them in.
local LOG = KEYS[1]

local MOST_ARGUMENTS = 7000 -- of one call: unpack of 8,000 overflows Lua's stack. Even, so that pairs stay together
local LOG_BYTES = 4194304 -- of a change log, about: the larger a change, the fewer stay
local DAY_MS = 86400000

-- Whether a document is there, its entity-tag (nil: another client's hash), and our own field. Raises WRONGTYPE.
local function look(key)
  local meta = redis.call('HGET', key, '$kv')
  if meta then
    return true, string.match(meta, '^(%d+%-%d+) '), meta
  end
  return redis.call('EXISTS', key) == 1, nil, nil
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

-- Look at the types of the namespace's keys before anything is written, and at the ms at which the expiry index has `rest`
-- expire (nil: it does not know it).
local function check_types(rest)
  redis.call('ZCARD', NAMES)
  redis.call('XLEN', LOG)
  return redis.call('ZSCORE', EXPIRY, rest) or nil
end

-- Append a document's change to the log and return its id, which is the document's entity-tag, and its time in ms. An entry
-- is three pairs of ours, then the members: {op, rest, 'ttl', ttl_ms, '$kv', shape, field, value, ...}. A document with too
-- many members for one call has '$packed' for '$kv', then '' and all of it as netstrings (3:abc,).
local function append(length, op, rest, ttl_ms, shape, fields, first, last)
  local bytes = 1
  for i = first, last do
    bytes = bytes + #fields[i]
  end
  local keep = bytes * length > LOG_BYTES and math.max(1, math.floor(LOG_BYTES / bytes)) or length
  local id
  if last - first < MOST_ARGUMENTS then
    id = redis.call('XADD', LOG, 'MAXLEN', '~', keep, '*', op, rest, 'ttl', ttl_ms, '$kv', shape, unpack(fields, first, last))
  else
    local packed = {}
    for i = first, last do
      packed[#packed + 1] = #fields[i] .. ':' .. fields[i] .. ','
    end
    packed = table.concat(packed)
    id = redis.call('XADD', LOG, 'MAXLEN', '~', keep, '*', op, rest, 'ttl', ttl_ms, '$packed', shape, '', packed)
  end
  return id, tonumber(string.match(id, '^%d+'))
end

local function slice(list, first, last)
  local part = {}
  for i = first, last do
    part[#part + 1] = list[i]
  end
  return part
end

-- HSET of fields[first..last], in as many calls as it takes.
local function set(key, fields, first, last)
  for from = first, last, MOST_ARGUMENTS do
    redis.call('HSET', key, unpack(fields, from, math.min(from + MOST_ARGUMENTS - 1, last)))
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
    last = string.format('%.0f', last)
    redis.call('PEXPIREAT', LOG, last)
    redis.call('PEXPIREAT', NAMES, last)
    redis.call('PEXPIREAT', EXPIRY, last)
    return last
  end
  return false
end

-- Put ARGV[first..last] in the place of all that a document holds, and say so in the log and the indexes: how many fields it
-- has (0: it is not there) and `due`, as note() takes it, are known by now, and so is that no key has another type. The first
-- write is XADD, which a full Redis refuses with nothing changed. `expires_at` is -1 for never, nil for ttl_ms from now on.
-- Returns the entity-tag, expires_at, the time in ms, and what note() returns.
local function replace(key, held, due, length, op, rest, ttl_ms, expires_at, shape, first, last)
  local exists = held > 0
  if due and not exists then
    redis.call('XADD', LOG, '*', 'expire', rest)
  end
  local id, now = append(length, op, rest, ttl_ms, shape, ARGV, first, last)
  local meta, stop = id .. shape, math.min(last, first + MOST_ARGUMENTS - 1)
  -- A document with as many fields as it will have, none of them new, is written over: DEL and making a hash cost more.
  local is_over = held * 2 == last - first + 3 and stop == last
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
  if string.sub(rest, -1) == '/' then -- a namespace, in the root's index
    redis.call('ZREM', EXPIRY, rest)
    redis.call('ZREM', NAMES, rest)
    return
  end
  redis.call('ZREM', EXPIRY, rest)
  redis.pcall('ZREM', NAMES, rest) -- of another type by another client's hand: not this request's concern
  redis.call('XADD', LOG, '*', 'expire', rest)
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
      redis.call('ZADD', EXPIRY, at, rest)
    end
  end
  return #due
end

-- Server values (Firebase's): where a value in ARGV[first..last] is '@' it becomes the time in ms, where it is '+n' the sum of
-- n and the integer that is stored there (0 where nothing is); JSON texts start with neither. Returns the name of a field whose sum there is none.
-- Numbers of Lua have 53 bits, so Redis adds.
local function resolve(key, first, last)
  local time = redis.call('TIME')
  for i = first, last, 2 do
    local value = ARGV[i]
    local kind = string.sub(value, 1, 1)
    if kind == '@' then
      ARGV[i] = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
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
