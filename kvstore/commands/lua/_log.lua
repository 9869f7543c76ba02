-- The change log: appending a change, and what is known of the log.
-- These files stand before each script, without what the script does not use (scripts.py). A function that carries out a request
-- takes the document's key and the position of its arguments in ARGV, so that a batch can call it as well.
-- No JSON value is ever decoded in Lua: cjson would turn 1.0 into 1 and [] into {}.

-- KEYS   1 the namespace's change log; each script's head names the others. The namespace's own keys stand here in
--        capitals, NAMES for one: paths.py lists them, scripts.py puts them in.
local LOG = KEYS[1]

local MOST_ARGUMENTS = 7000 -- of one call: unpack of 8,000 overflows Lua's stack. Even, so that pairs stay together
local MOST_ENTRIES = 1000000000 -- of a log that is not trimmed
local MOST_TRIMMED = '1000' -- by one change, where more came untrimmed: who reads it has time. A node of a stream has fewer
local LOG_BYTES = 4194304 -- of a change log, about: the larger a change, the fewer stay
local DAY_MS = 86400000
local deferred_trim -- nil, but where a script of many changes trims the log in the end: how many entries stay then, at most

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function slice(list, first, last)
  local part = {}
  for i = first, last do
    part[#part + 1] = list[i]
  end
  return part
end

-- Whether one change came before another, by their ids.
local function is_before(one, other)
  local one_ms, one_count = string.match(one, '^(%d+)%-(%d+)$')
  local other_ms, other_count = string.match(other, '^(%d+)%-(%d+)$')
  if one_ms == other_ms then
    return tonumber(one_count) < tonumber(other_count)
  end
  return tonumber(one_ms) < tonumber(other_ms)
end

-- Where the first write of a script is one like this, a full Redis lets it through, and with it what follows in the script.
local function write_nothing()
  redis.call('DEL', SCRATCH)
end

local clock_ms = 0 -- what a script knows of the time: it is at least that
local last_ms, last_time -- the first part of the last id, as it is spelled, and the time of that change
local has_jumped = false

-- Append an entry to the log, and return its id, and its time in ms. The time is that of the id, unless the clock is behind the last
-- change. Then ids go on from there, with a count that is not 0, while documents expire by the clock. Two servers that each go on
-- from the same change, since a failover has lost what came after it, would give the same ids: so each leaves some out.
local function add(keep, ...)
  if deferred_trim then
    deferred_trim, keep = math.min(deferred_trim + 1, keep), MOST_ENTRIES
  end
  local id = deferred_trim and redis.call('XADD', LOG, '*', ...)
    or redis.call('XADD', LOG, 'MAXLEN', '~', keep, 'LIMIT', MOST_TRIMMED, '*', ...)
  local ms = string.match(id, '^%d+')
  if ms ~= last_ms then
    last_ms, last_time = ms, tonumber(ms)
    if last_time > clock_ms then -- it goes on while a script runs
      clock_ms = string.sub(id, -2) == '-0' and last_time or clock()
    end
    if last_time > clock_ms then
      last_time = clock_ms
      if not has_jumped then
        has_jumped = true
        redis.call('XDEL', LOG, id)
        id = string.format('%s-%.0f', ms, string.match(id, '%d+$') + 1 + redis.call('TIME')[2] % 50000)
        redis.call('XADD', LOG, 'MAXLEN', '~', keep, 'LIMIT', MOST_TRIMMED, id, ...)
      end
    end
  end
  return id, last_time
end

-- Append a document's change to the log and return its id, which is the document's entity-tag, and its time in ms. An entry
-- is three pairs of ours, then the members: {op, name, 'ttl', ttl_ms, '$kv', before .. shape, field, value, ...}; `before` is the
-- entity-tag that the document had, '' for none. A document with too many members for one call has '$packed' for '$kv', then ''
-- and all of it as netstrings (3:abc,).
local function append(length, op, name, before, ttl_ms, shape, fields, first, last)
  local bytes, shape = #shape, before .. shape
  for i = first, last do
    bytes = bytes + #fields[i]
  end
  local keep = bytes * length > LOG_BYTES and math.max(1, math.floor(LOG_BYTES / bytes)) or length
  if last - first < MOST_ARGUMENTS then
    return add(keep, op, name, 'ttl', ttl_ms, '$kv', shape, unpack(fields, first, last))
  end
  local packed, count, sizes = {}, 0, {} -- no string is made for each part
  for i = first, last do
    local size = #fields[i]
    sizes[size] = sizes[size] or size .. ':'
    packed[count + 1], packed[count + 2], packed[count + 3], count = sizes[size], fields[i], ',', count + 3
  end
  return add(keep, op, name, 'ttl', ttl_ms, '$packed', shape, '', table.concat(packed))
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
