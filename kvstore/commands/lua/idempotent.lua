-- Carry out a request with an Idempotency-Key once, and answer every later one as the first.
-- KEYS   the last one: where the answer is kept
-- ARGV   the last but one: ms for which it is kept; the last one: what tells this request from another with the same key
-- reply  what the request answers, {'error', what Redis said} where a key has another type; {'replayed', what the first
--        answered}; {'reused'} where the first was another request

-- Replies after which more is asked, or that changed nothing and may be another next time.
local NOT_LAST = {lost = true, read = true, none = true, more = true, dead = true, moved = true}

local function idempotent(act, key)
  local kept, request, keep_ms = KEYS[#KEYS], table.remove(ARGV), table.remove(ARGV)
  local first = redis.call('HMGET', kept, 'request', 'reply')
  if first[1] and first[1] ~= request then
    return {'reused'}
  elseif first[2] then
    return {'replayed', cjson.decode(first[2])} -- lists of strings, and times in ms, which have fewer digits than cjson keeps
  end
  local ok, reply = pcall(act, key, 1, #ARGV)
  if not ok then
    local said = type(reply) == 'table' and reply.err or tostring(reply)
    if string.sub(said, 1, 9) ~= 'WRONGTYPE' then
      return redis.error_reply(said)
    end
    reply = {'error', said}
  end
  write_nothing() -- what was done is kept also where Redis is full
  if reply[1] == 'some' then -- of a recursive DELETE, which several may be sending at once
    reply[2] = redis.call('HINCRBY', kept, 'so far', reply[2])
    redis.call('HSET', kept, 'request', request)
    redis.call('PEXPIRE', kept, keep_ms)
  elseif not NOT_LAST[reply[1]] then
    redis.call('HSET', kept, 'request', request, 'reply', cjson.encode(reply))
    redis.call('PEXPIRE', kept, keep_ms)
  end
  return reply
end
