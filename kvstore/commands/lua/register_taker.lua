-- Register somebody who waits for a job, or renew that. The first write is one that a full Redis refuses.
-- KEYS   1 who waits at the queue, by the ms until which they do
-- ARGV   1 the ms for which it waits at most  2 most entries  3 its entry, '' where it has none  4 the ms for which it has waited
--        5 what follows these in a new entry
-- reply  its entry; nil where there are too many others

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entry = ARGV[3]
if entry == '' then
  if redis.call('ZCOUNT', KEYS[1], string.format('(%.0f', now), '+inf') >= tonumber(ARGV[2]) then
    return false
  end
  entry = string.format('%.0f %s', now - ARGV[4], ARGV[5])
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[1]), entry)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now)) -- of processes that died
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return entry
