-- The indexes of a namespace: which documents there are, and when they expire.

-- Look at the types of the namespace's keys before anything is written, and at the ms at which the expiry index has `name`
-- expire (nil: it does not know it).
local function check_types(name)
  redis.call('ZCARD', NAMES)
  redis.call('XLEN', LOG)
  return redis.call('ZSCORE', EXPIRY, name) or nil
end

-- The names below a container, as ZRANGEBYLEX takes a range. A slash is followed by a 0 in the order of bytes.
local function range_below(container)
  if container == '' then
    return '-', '+'
  end
  return '[' .. container, '(' .. string.sub(container, 1, -2) .. '0'
end

-- Let all keys of the namespace live until then.
local function live_until(at)
  at = string.format('%.0f', at)
  for _, key in ipairs({LOG, NAMES, EXPIRY, LATEST, ERASED, BLOCKED, READY_AT, RELEASED}) do
    redis.call('PEXPIREAT', key, at)
  end
end

-- Give back the memory that a new log does not need: Redis makes a stream with room for 4 KiB of entries, and RESTORE without. A
-- namespace of one small document costs a quarter so.
local function shrink_new_log()
  if redis.call('XLEN', LOG) == 1 then
    redis.call('RESTORE', LOG, 0, redis.call('DUMP', LOG), 'REPLACE')
  end
end

-- Note in the namespace's indexes that `name` is there and expires at `at` (nil: never); `due` is what they say so far (nil:
-- nothing). Their expiry may be early, never late, so that it need not be written with every change: sweep() finds out.
-- They and the log live at least a day longer than the last document, so that a namespace nobody uses leaves nothing.
-- Returns the ms at which they expire where that is new: the root's index must be told.
local function index(name, due, at)
  if at then
    due = tonumber(due or nil)
    if due and at >= due and due >= at - at % DAY_MS then -- no sooner than it says, and of the same day
      return false
    end
    redis.call('ZADD', EXPIRY, string.format('%.0f', at), name)
  end
  if not due then
    redis.call('ZADD', NAMES, 0, name)
  end
  local last = at and (math.floor(at / DAY_MS) + 2) * DAY_MS or 4102444800000 -- the year 2100
  if redis.call('PEXPIRETIME', NAMES) < last then
    shrink_new_log()
    live_until(last)
    return string.format('%.0f', last)
  end
  return false
end

-- Where no document is left the log goes too, though not before a day has passed: read_changes.lua relies on that.
local function expire_namespace()
  if redis.call('EXISTS', NAMES) == 0 then
    live_until(clock() + 2 * DAY_MS)
  else
    keep_as_names(LOG)
  end
end
