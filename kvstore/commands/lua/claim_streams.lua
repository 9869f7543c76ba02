-- Claim places among the open streams of a client, or keep those that were claimed.
-- KEYS   the client's streams, by the ms until which they are claimed
-- ARGV   how many the client may have, for how many ms to claim, the streams
-- reply  how many of these streams have a place: the first ones

local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
local free = tonumber(ARGV[1]) - redis.call('ZCARD', KEYS[1])
for at = 3, #ARGV do
  if not redis.call('ZSCORE', KEYS[1], ARGV[at]) then
    free = free - 1
    if free < 0 then
      return at - 3
    end
  end
  local claimed = redis.pcall('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[at])
  if type(claimed) == 'table' and claimed.err then -- a full Redis: streams go on, and are not counted
    return #ARGV - 2
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return #ARGV - 2
