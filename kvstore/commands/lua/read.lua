-- Read a document.
-- KEYS   1 document
-- reply  {fields, expires_at_ms, ttl_ms}, both times -1 where it does not expire; nil where nothing is there

local fields = redis.call('HGETALL', KEYS[1])
if #fields == 0 then
  return false
end
return {fields, redis.call('PEXPIRETIME', KEYS[1]), redis.call('PTTL', KEYS[1])}
