-- Carry out a request with an Idempotency-Key once, and answer every later one as the first (DESIGN 46).
-- KEYS   1 log  2 where the answer is kept  3 document, where the request has one
-- ARGV   the last but one: ms for which it is kept; the last one: what tells this request from another with the same key
-- reply  what the request answers, {'error', what Redis said} where a key has another type; {'replayed', what the first
--        answered}, with {entity-tag}, or {''}, for the fields of a document that is not shown again; {'reused'} where the
--        first was another request

-- Replies after which more is asked, or that changed nothing and may be another next time.
local NOT_LAST = {lost = true, read = true, none = true, more = true, dead = true, moved = true}

local MOST_REPLAYED = 8192 -- bytes of a document that has changed since, in its fields

-- Call visit(holder, i, key) for each document that a reply shows: holder[i] are its fields, or false for those that were sent.
local function visit_shown(reply, key, at, visit)
  local word, part = reply[1], reply[2]
  if word == 'taken' then
    for _, job in ipairs(part) do
      visit(job[2], 1, ARGV[at] .. job[1])
    end
  elseif word == 'done' or word == 'undone' then -- of a batch
    local replies = word == 'done' and part or {[part + 1] = reply[3]}
    local request, last = at + 4, word == 'done' and #part or part + 1
    for i = 1, last do
      if replies[i] then
        visit_shown(replies[i], ARGV[at] .. ARGV[request + 2], request + 2, visit)
      end
      request = request + 2 + ARGV[request + 1]
    end
  elseif type(part) == 'table' then
    visit(part, 1, key)
  elseif word == 'created' and type(reply[3]) == 'string' then -- of post.lua
    visit(reply, 4, ARGV[at] .. reply[3])
  elseif word == 'created' or word == 'replaced' then
    visit(reply, 5, key)
  end
end

-- The entity-tag in a document's fields, nil for none.
local function tag_in(fields)
  for i = 1, #fields, 2 do
    if fields[i] == '$kv' then
      local _, name = read_mark(fields[i + 1])
      return string.match(name or fields[i + 1], '^(%d+%-%d+) ')
    end
  end
end

-- A reply as it is kept, without the value of any document.
local function encode_receipt(reply, key)
  local taken_out = {}
  visit_shown(reply, key, 1, function(holder, i, document)
    taken_out[#taken_out + 1] = {holder, i, holder[i]}
    -- The second word of put.lua and post.lua is the entity-tag.
    holder[i] = {key = document, tag = type(holder[2]) == 'string' and holder[2] or tag_in(holder[i])}
  end)
  local receipt = cjson.encode(reply)
  for _, each in ipairs(taken_out) do
    each[1][each[2]] = each[3]
  end
  return receipt
end

-- The fields of a document that was shown with this entity-tag (nil: none): as long as it is the same, and as long as the log has
-- it, which knows no more of a document that is gone. {tag} if it is not shown again.
local function fields_of(key, tag)
  local is_hash, exists, current = pcall(inspect, key)
  if tag and is_hash and exists then
    if current == tag then
      return redis.call('HGETALL', key)
    end
    local entry = redis.call('XRANGE', LOG, tag, tag)[1]
    if entry and entry[2][5] == '$kv' then -- and not '$packed': those are larger
      local before, shape = string.match(entry[2][6], '^(%S*)( .*)$')
      local fields, bytes = {'$kv', tag .. (shape or '')}, 0
      for i = 7, #entry[2] do
        fields[i - 4], bytes = entry[2][i], bytes + #entry[2][i]
      end
      if before and bytes <= MOST_REPLAYED then
        return fields
      end
    end
  end
  return {tag or ''}
end

-- A kept reply, with the documents that it still shows.
local function restore(reply)
  for i, part in ipairs(reply) do
    if type(part) == 'table' then
      reply[i] = part.key and fields_of(part.key, part.tag) or restore(part)
    end
  end
  return reply
end

local function idempotent(act, key)
  local kept, request, keep_ms = KEYS[2], table.remove(ARGV), table.remove(ARGV)
  local first = redis.call('HMGET', kept, 'request', 'reply')
  if first[1] and first[1] ~= request then
    return {'reused'}
  elseif first[2] then
    redis.call('PEXPIREAT', kept, redis.call('PEXPIRETIME', kept)) -- a write: WAIT after it waits for all before it too
    return {'replayed', restore(cjson.decode(first[2]))} -- strings, and times in ms, which have fewer digits than cjson keeps
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
    redis.call('HSET', kept, 'request', request, 'reply', encode_receipt(reply, key))
    redis.call('PEXPIRE', kept, keep_ms)
  end
  return reply
end
