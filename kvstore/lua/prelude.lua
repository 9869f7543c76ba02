-- What every script shares; it stands before each of them. Keys and arguments of a script are written at its own head.
-- No JSON value ever passes through Lua's cjson: it would turn 1.0 into 1 and [] into {}.

local MOST_ARGUMENTS = 7000 -- of one call: unpack of 8,000 overflows Lua's stack. Even, so that pairs stay together
local LOG_BYTES = 4194304 -- of a change log, about: the larger a change, the fewer stay
local DAY_MS = 86400000

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether a document is there, and its entity-tag (nil: another client's hash). Raises WRONGTYPE.
local function look(key)
  local meta = redis.call('HGET', key, '$kv')
  if meta then
    local tag = string.match(meta, '^(%d+%-%d+) ')
    return true, tag
  end
  return redis.call('EXISTS', key) == 1, nil
end

-- The document as {fields, expires_at_ms, ttl_ms}; both times -1 where it does not expire; false where nothing is there.
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

-- Append a document's change to the log and return its id, which is the document's entity-tag. An entry is three pairs of
-- ours, then the members: {op, rest, 'at', expires_at_ms, '$kv', shape, field, value, ...}. A document with too many
-- members for one call has '$packed' for '$kv', then '' and all of it as netstrings (3:abc,).
local function append(log, length, op, rest, at, shape, fields, first)
  local count, bytes = #fields - first + 1, 1
  for i = first, #fields do
    bytes = bytes + #fields[i]
  end
  local keep = math.max(1, math.min(tonumber(length), math.floor(LOG_BYTES / bytes)))
  if count <= MOST_ARGUMENTS then
    return redis.call('XADD', log, 'MAXLEN', '~', keep, '*', op, rest, 'at', at, '$kv', shape, unpack(fields, first))
  end
  local packed = {}
  for i = first, #fields do
    packed[#packed + 1] = #fields[i] .. ':' .. fields[i] .. ','
  end
  return redis.call('XADD', log, 'MAXLEN', '~', keep, '*', op, rest, 'at', at, '$packed', shape, '', table.concat(packed))
end

-- The namespace's own keys live a day longer than its last document, so that a namespace nobody uses leaves nothing.
local function outlive(log, index, expiry, at)
  if redis.call('PEXPIRETIME', index) < tonumber(at) then
    local later = string.format('%.0f', at + DAY_MS)
    redis.call('PEXPIREAT', log, later)
    redis.call('PEXPIREAT', index, later)
    redis.call('PEXPIREAT', expiry, later)
  end
end

-- Move up to `most` expired documents of the namespace from the index into the change log. `expiry` says which are due;
-- a document that another client kept alive, or made immortal, is not.
local function sweep(prefix, log, index, expiry, now, most)
  local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', '(' .. now, 'LIMIT', 0, most)
  for _, rest in ipairs(due) do
    local at = redis.call('PEXPIRETIME', prefix .. rest)
    if at == -2 then
      redis.call('XADD', log, '*', 'expire', rest)
      redis.call('ZREM', index, rest)
      redis.call('ZREM', expiry, rest)
    elseif at == -1 then
      redis.call('ZREM', expiry, rest)
    else
      redis.call('ZADD', expiry, at, rest)
    end
  end
end
