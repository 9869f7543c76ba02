-- Delete a document.
-- KEYS   1 document  2 log  3 names  4 expiry
-- ARGV   1 the document's name in names and log  2 If-Match  3 If-None-Match  4 If-Unmodified-Since (s)
--        5 length of the log
-- reply  {'deleted', the change's id}, {'missing'}, or {'failed', what is there (as read.lua)}

local exists, tag = look(KEYS[1])
if not exists then
  return {'missing'}
end
if fails(exists, tag, ARGV[2], ARGV[3], ARGV[4]) then
  return failed(KEYS[1])
end

-- Types first, then DEL as the first write: a full Redis lets it through, and with it the rest of the script.
redis.call('XLEN', KEYS[2])
redis.call('ZCARD', KEYS[3])
redis.call('ZCARD', KEYS[4])
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'delete', ARGV[1])
if redis.call('PTTL', KEYS[2]) == -1 then
  redis.call('PEXPIRE', KEYS[2], DAY_MS)
end
return {'deleted', id}
