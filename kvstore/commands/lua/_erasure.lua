-- Taking the changes of a document that is gone out of the log. An entry names the one before it of the same document, so they are
-- found one after the other, from the last one on. That is the document's entity-tag; of one that has expired LATEST knows it.

local SOON_MS = 30 * DAY_MS -- LATEST knows the documents that expire sooner: all others that have expired wrote nothing for as long
local MOST_ERASED = 1000 -- changes of one document, and in one script, about: some 10 ms
local MOST_KNOWN = 2000 -- erased changes of which is known what came after them
local FRESH_MS = 2000 -- UNREAD has what was younger when it was erased, for so long: who follows may not have read it yet
local erased = 0 -- by this script
local deferred_erasures -- nil, but in an atomic batch, which erases when it is done: the last changes of documents

-- Know the last change of a document if that expires soon; `may_know` is whether LATEST may have an older one of it.
local function know_latest(name, id, left_ms, may_know)
  if left_ms < SOON_MS then
    if redis.pcall('HSET', LATEST, name, id) == 1 then -- of another type it knows nothing, and the entries stay until trimmed
      keep_as_names(LATEST)
    end
  elseif may_know then
    redis.pcall('HDEL', LATEST, name)
  end
end

-- Keep an entry that is to be erased for those who follow at this time, and for nobody else.
local function keep_fresh(entry, now)
  if now - string.match(entry[1], '^%d+') >= FRESH_MS then
    return
  end
  local bytes = 0
  for _, part in ipairs(entry[2]) do
    bytes = bytes + #part
  end
  redis.pcall('XADD', UNREAD, 'MAXLEN', '=', math.max(1, math.floor(LOG_BYTES / (bytes + 64))), '*', 'id', entry[1], unpack(entry[2]))
  redis.pcall('XTRIM', UNREAD, 'MINID', '=', string.format('%.0f', now - FRESH_MS))
  redis.pcall('PEXPIRE', UNREAD, FRESH_MS)
end

-- Erase a document's changes, `id` being the last. Who has read up to one of them goes on with the entry that came after it, so
-- ERASED knows that one. A document that changed more often than one script can erase takes all that is as old out of the log.
local function erase_now(id)
  local ids, known, following, now = {}, {}, {}, clock()
  while id and #ids < MOST_ERASED do
    local entries = redis.call('XRANGE', LOG, id, '+', 'COUNT', 2)
    if not entries[1] or entries[1][1] ~= id then -- trimmed
      id = nil
      break
    end
    keep_fresh(entries[1], now)
    local after = entries[2] and entries[2][1] or '-'
    following[id] = following[after] or after
    ids[#ids + 1] = id
    known[#known + 1] = 0
    known[#known + 1] = id .. ' ' .. following[id]
    id = string.match(entries[1][2][6] or '', '^(%d+%-%d+) ')
  end
  if #ids == 0 then
    return
  end
  if id then
    local ms, count = string.match(id, '^(%d+)%-(%d+)$')
    redis.call('XTRIM', LOG, 'MINID', '=', string.format('%s-%.0f', ms, count + 1))
  end
  redis.call('XDEL', LOG, unpack(ids))
  redis.pcall('ZADD', ERASED, unpack(known))
  redis.pcall('ZREMRANGEBYRANK', ERASED, 0, -MOST_KNOWN - 1)
  local expires_at = redis.call('PEXPIRETIME', LOG)
  if expires_at >= 0 then
    redis.call('PEXPIREAT', ERASED, string.format('%.0f', expires_at))
  end
  erased = erased + #ids
end

local function erase(id)
  if deferred_erasures then
    deferred_erasures[#deferred_erasures + 1] = id
  else
    erase_now(id)
  end
end

-- Erase the changes of a document that has expired.
local function erase_expired(name)
  local id = redis.pcall('HGET', LATEST, name)
  if type(id) == 'string' then
    redis.call('HDEL', LATEST, name)
    erase_now(id)
  else
    redis.call('XTRIM', LOG, 'MINID', '=', string.format('%.0f', clock() - SOON_MS))
  end
end

-- Whether a position is a change that was erased, and nothing that came after it is missing.
local function is_erased_position(id)
  for _ = 1, MOST_KNOWN do
    local known = redis.pcall('ZRANGEBYLEX', ERASED, '[' .. id .. ' ', '(' .. id .. '!', 'LIMIT', 0, 1)[1] -- '!' follows ' '
    if not known then
      return false
    end
    id = string.sub(known, #id + 2)
    local entry = redis.call('XRANGE', LOG, id, '+', 'COUNT', 1)[1]
    if entry and entry[1] == id then
      return true
    end
  end
  return false
end
