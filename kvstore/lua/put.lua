-- Replace a document as a whole, or create it.
-- KEYS   1 document  2 log  3 index  4 expiry
-- ARGV   1 the document's name in index and log  2 ttl_ms  3 If-Match  4 If-None-Match  5 If-Unmodified-Since (s)
--        6 length of the log  7 what follows the entity-tag in our own field  8… field, value, field, value…
-- reply  {'created' or 'replaced', entity-tag, expires_at_ms}, or {'failed', what is there (as read.lua)}

local exists, tag = look(KEYS[1])
if fails(exists, tag, ARGV[3], ARGV[4], ARGV[5]) then
  return {'failed', read(KEYS[1])}
end

-- A key of another type must be found before anything is written: these two calls and the first XADD, the first write,
-- touch every key. XADD is also where a full Redis refuses, with nothing changed.
redis.call('ZCARD', KEYS[3])
local due = redis.call('ZSCORE', KEYS[4], ARGV[1])
local now = now_ms()
if due and not exists then
  redis.call('XADD', KEYS[2], '*', 'expire', ARGV[1])
end
local at = string.format('%.0f', now + ARGV[2])
local id = append(KEYS[2], ARGV[6], 'put', ARGV[1], at, ARGV[7], ARGV, 8)

if exists then
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], '$kv', id .. ARGV[7])
for first = 8, #ARGV, MOST_ARGUMENTS do
  redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + MOST_ARGUMENTS - 1, #ARGV)))
end
redis.call('PEXPIREAT', KEYS[1], at)
if not (due and exists) then
  redis.call('ZADD', KEYS[3], 0, ARGV[1])
end
redis.call('ZADD', KEYS[4], at, ARGV[1])
outlive(KEYS[2], KEYS[3], KEYS[4], at)
sweep(string.sub(KEYS[1], 1, #KEYS[1] - #ARGV[1]), KEYS[2], KEYS[3], KEYS[4], now, 4)
return {exists and 'replaced' or 'created', id, at}
