-- Hold a document no longer, and delete it where nobody else does.
-- KEYS   1 log  2 document  3 who holds the document, by the ms until which they do
-- ARGV   1 who held it  2… as in delete.lua
-- reply  {'deleted', the change's id}; {'missing'} where it was deleted before; {'held'} where others hold it; {'lapsed'} where
--        we did not: then it is not ours to delete

local function release_hold(key, at)
  local holders = KEYS[3]
  local now = clock()
  local until_ms = redis.call('ZSCORE', holders, ARGV[at])
  local reply = {'lapsed'}
  if until_ms and tonumber(until_ms) > now then
    local is_last = redis.call('ZCOUNT', holders, string.format('(%.0f', now), '+inf') == 1
    reply = is_last and delete(key, at + 1) or {'held'}
  end
  redis.call('ZREM', holders, ARGV[at])
  redis.call('ZREMRANGEBYSCORE', holders, '-inf', string.format('%.0f', now))
  return reply
end
