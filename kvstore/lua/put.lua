-- Replace a document as a whole, or create it.
-- KEYS   1 document  2 log  3 names  4 expiry
-- ARGV   1 the document's name in names and log  2 ttl_ms  3 If-Match  4 If-None-Match  5 If-Unmodified-Since (s)
--        6 length of the log  7 what follows the entity-tag in our own field  8… field, value, field, value…
-- reply  {'created' or 'replaced', entity-tag}, or {'failed', what is there (as read.lua)}

local exists, tag = look(KEYS[1])
if fails(exists, tag, ARGV[3], ARGV[4], ARGV[5]) then
  return failed(KEYS[1])
end

-- A key of another type is found before anything is written: these calls and the first XADD, which is the first write,
-- touch every key. XADD is also where a full Redis refuses, with nothing changed.
local due = redis.call('ZSCORE', KEYS[4], ARGV[1])
if not (due and exists) then
  redis.call('ZCARD', KEYS[3])
  if due then
    redis.call('XADD', KEYS[2], '*', 'expire', ARGV[1])
    due = nil
  end
end
local id, now = append(KEYS[2], ARGV[6], 'put', ARGV[1], ARGV[2], ARGV[7], ARGV, 8)

if exists then
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], '$kv', id .. ARGV[7], unpack(ARGV, 8, math.min(#ARGV, 7 + MOST_ARGUMENTS)))
for first = 8 + MOST_ARGUMENTS, #ARGV, MOST_ARGUMENTS do
  redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + MOST_ARGUMENTS - 1, #ARGV)))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
note(KEYS[2], KEYS[3], KEYS[4], ARGV[1], due, now + ARGV[2])
if now % 16 == 0 then -- often enough that the indexes hold little that has expired, seldom enough to cost nothing
  sweep(string.sub(KEYS[1], 1, #KEYS[1] - #ARGV[1]), KEYS[2], KEYS[3], KEYS[4], now, 100)
end
return {exists and 'replaced' or 'created', id}
