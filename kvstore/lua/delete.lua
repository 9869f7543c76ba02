-- Delete a document.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 If-Match  3 If-None-Match  4 If-Unmodified-Since (s)
--        5 length of the log
-- reply  {'deleted', the change's id}, {'missing'}, {'failed', what is there}

local function delete(key, at)
  local exists, tag = look(key)
  if not exists then
    return {'missing'}
  end
  if fails(exists, tag, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]) then
    return {'failed', read(key)}
  end
  check_types(ARGV[at])
  -- DEL is the first write: a full Redis lets it through, and with it the rest of the script.
  redis.call('DEL', key)
  redis.call('ZREM', NAMES, ARGV[at])
  redis.call('ZREM', EXPIRY, ARGV[at])
  local id = redis.call('XADD', LOG, 'MAXLEN', '~', ARGV[at + 4], '*', 'delete', ARGV[at])
  if redis.call('PTTL', LOG) == -1 then
    redis.call('PEXPIRE', LOG, DAY_MS)
  end
  return {'deleted', id}
end
