-- Keep a document there for a stream: register who holds it, write it where that is to be, start its short TTL again.
-- KEYS   1 log  2 document  3 who holds the document, by the ms until which they do
-- ARGV   1 who holds it from now on  2 'hold' for a new stream, whose value is written where it differs; 'renew' for those that
--        go on, whose document may have been changed since
--        3… as in put.lua; its ttl_ms is for how long the document is held
-- reply  {'held', as in put.lua the ms at which the namespace's own keys expire}, {'taken'} where a document is stored that
--        nobody holds, unless it is one whose holders are heard of no more: that is until it expires, as key 3 does

-- Whether what is stored is what put() would write.
local function is_same(key, tag, meta, at, last)
  if string.sub(meta, #tag + 1) ~= ARGV[at + 3] or redis.call('HLEN', key) ~= (last - at - 4) / 2 + 1 then
    return false
  end
  for i = at + 5, last, 2 do
    if redis.call('HGET', key, ARGV[i]) ~= ARGV[i + 1] then
      return false
    end
  end
  return true
end

local function hold(key, at, last)
  local holders, name, ttl_ms = KEYS[3], ARGV[at + 2], tonumber(ARGV[at + 3])
  local now = clock()
  local exists, tag, meta, job = inspect(key)
  local is_held = redis.call('ZCOUNT', holders, string.format('(%.0f', now), '+inf') > 0
  if exists and not is_held then
    local left_ms = redis.call('PTTL', key)
    if left_ms < 0 or left_ms > ttl_ms or redis.call('EXISTS', holders) == 0 then
      return {'taken'}
    end
  end
  local stays = ARGV[at + 1] == 'renew' or is_leased(job) or (tag and is_same(key, tag, meta, at + 2, last))
  local new_expiry
  if exists and stays then
    local due = check_types(name)
    redis.call('PEXPIRE', key, ttl_ms) -- the first write is one that a full Redis lets through: who is there stays there
    new_expiry = index(name, due, redis.call('PEXPIRETIME', key))
    if tag then
      know_latest(name, tag)
    end
  else
    new_expiry = put(key, at + 2, last)[6]
  end
  redis.call('ZREMRANGEBYSCORE', holders, '-inf', string.format('%.0f', now))
  redis.call('ZADD', holders, string.format('%.0f', now + ttl_ms), ARGV[at])
  redis.call('PEXPIRE', holders, ttl_ms)
  return {'held', new_expiry}
end
