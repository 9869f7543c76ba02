-- Delete documents below a container, some at a time, so that Redis is never held up for long. The log is trimmed by later
-- writes: who follows would lose what one script says in more entries than the log keeps.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 most documents
-- reply  {'some', how many, 'more' or nil}

local function delete_recursive(_, at)
  local prefix, container = ARGV[at], ARGV[at + 1]
  local low, high = range_below(container)
  local names = redis.call('ZRANGEBYLEX', NAMES, low, high, 'LIMIT', 0, ARGV[at + 2])
  check_types('')
  local deleted, seen, has_jobs = 0, 0, redis.call('EXISTS', READY_AT) == 1
  local has_latest = redis.call('EXISTS', LATEST) == 1
  local oldest = redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
  local since_ms = oldest and tonumber(string.match(oldest[1], '^%d+')) or 0 -- the changes that were made before it are gone
  for _, name in ipairs(names) do
    if (collected or 0) >= MOST_ERASED then
      break
    end
    seen = seen + 1
    local is_hash, exists, tag = pcall(inspect, prefix .. name)
    if not is_hash then -- another client's key of another type
      redis.call('ZREM', EXPIRY, name)
      redis.call('ZREM', NAMES, name)
      unblock(name)
    elseif exists then
      remove(prefix .. name, name, MOST_ENTRIES)
      if tag and tonumber(string.match(tag, '^%d+')) >= since_ms then
        erase_changes(name, tag)
      elseif has_latest then
        redis.pcall('HDEL', LATEST, name)
      end
      if has_jobs then
        unblock(name)
      end
      deleted = deleted + 1
    else
      erasing().record(name)
    end
  end
  return {'some', deleted, (seen < #names or #names == tonumber(ARGV[at + 2])) and 'more' or false}
end
