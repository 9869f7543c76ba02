-- What the writing scripts share; it stands before each of them. Keys and arguments of a script are written at its own head.
-- No JSON value ever passes through Lua's cjson: it would turn 1.0 into 1 and [] into {}.

local MOST_ARGUMENTS = 7000 -- of one call: unpack of 8,000 overflows Lua's stack. Even, so that pairs stay together
local LOG_BYTES = 4194304 -- of a change log, about: the larger a change, the fewer stay
local DAY_MS = 86400000

-- Whether a document is there, and its entity-tag (nil: another client's hash). Raises WRONGTYPE.
local function look(key)
  local meta = redis.call('HGET', key, '$kv')
  if meta then
    return true, string.match(meta, '^(%d+%-%d+) ')
  end
  return redis.call('EXISTS', key) == 1, nil
end

-- The answer where a precondition fails: what is there, as read.lua answers.
local function failed(key)
  local fields = redis.call('HGETALL', key)
  if #fields == 0 then
    return {'failed', false}
  end
  return {'failed', {fields, redis.call('PEXPIRETIME', key), redis.call('PTTL', key)}}
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

-- Append a document's change to the log and return its id, which is the document's entity-tag, and its time in ms. An entry
-- is three pairs of ours, then the members: {op, rest, 'ttl', ttl_ms, '$kv', shape, field, value, ...}. A document with too
-- many members for one call has '$packed' for '$kv', then '' and all of it as netstrings (3:abc,).
local function append(log, length, op, rest, ttl_ms, shape, fields, first)
  local bytes = 1
  for i = first, #fields do
    bytes = bytes + #fields[i]
  end
  local id
  local keep = bytes * length > LOG_BYTES and math.max(1, math.floor(LOG_BYTES / bytes)) or length
  if #fields - first < MOST_ARGUMENTS then
    id = redis.call('XADD', log, 'MAXLEN', '~', keep, '*', op, rest, 'ttl', ttl_ms, '$kv', shape, unpack(fields, first))
  else
    local packed = {}
    for i = first, #fields do
      packed[#packed + 1] = #fields[i] .. ':' .. fields[i] .. ','
    end
    packed = table.concat(packed)
    id = redis.call('XADD', log, 'MAXLEN', '~', keep, '*', op, rest, 'ttl', ttl_ms, '$packed', shape, '', packed)
  end
  return id, tonumber(string.match(id, '^%d+'))
end

-- Note in the namespace's indexes that `rest` is there and expires at `at`; `due` is what they say so far (nil: nothing).
-- Their expiry may be early, never late, so that it need not be written with every change: sweep() finds out. They and the
-- log live at least a day longer than the last document, so that a namespace nobody uses leaves nothing.
local function note(log, names, expiry, rest, due, at)
  local day = math.floor(at / DAY_MS)
  if due and at >= tonumber(due) and day == math.floor(due / DAY_MS) then
    return
  end
  if not due then
    redis.call('ZADD', names, 0, rest)
  end
  redis.call('ZADD', expiry, string.format('%.0f', at), rest)
  local last = (day + 2) * DAY_MS
  if redis.call('PEXPIRETIME', names) < last then
    last = string.format('%.0f', last)
    redis.call('PEXPIREAT', log, last)
    redis.call('PEXPIREAT', names, last)
    redis.call('PEXPIREAT', expiry, last)
  end
end

-- Move up to `most` expired documents of the namespace from the indexes into the change log. A document that another client
-- kept alive, or made immortal, is still there.
local function sweep(prefix, log, names, expiry, now, most)
  local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', string.format('(%.0f', now), 'LIMIT', 0, most)
  for _, rest in ipairs(due) do
    local at = redis.call('PEXPIRETIME', prefix .. rest)
    if at == -2 then
      redis.call('XADD', log, '*', 'expire', rest)
      redis.pcall('ZREM', names, rest) -- of another type by another client's hand: not this write's concern
      redis.call('ZREM', expiry, rest)
    elseif at == -1 then
      redis.call('ZREM', expiry, rest)
    else
      redis.call('ZADD', expiry, at, rest)
    end
  end
end
