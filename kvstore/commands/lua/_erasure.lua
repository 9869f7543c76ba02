-- Taking the changes of a document that is gone out of the log. An entry names the one before it of the same document, so they are
-- found one after the other, from the last one on. That is the document's entity-tag; of one that has expired LATEST knows it.
-- They are collected, and erased when the script is done (scripts.py): so no entry is read twice.

local SOON_MS = 30 * DAY_MS -- LATEST knows the documents that expire sooner: all others that have expired wrote nothing for as long
local MOST_ERASED = 1000 -- changes of one document, and in one script, about: some 10 ms
local MOST_KNOWN = 2000 -- erased changes of which is known what came after them
local FRESH_MS = 2000 -- UNREAD has what was younger when it was erased, for so long: who follows may not have read it yet
local collected = {} -- the ids of changes that are to be erased
local following = {} -- what comes after each
local deferred_erasures -- nil, but in an atomic batch, which collects when it is done: the last changes of documents

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
  local bytes = 64
  for _, part in ipairs(entry[2]) do
    bytes = bytes + #part
  end
  redis.pcall('XADD', UNREAD, 'MAXLEN', '=', math.max(1, math.floor(LOG_BYTES / bytes)), '*', 'id', entry[1], unpack(entry[2]))
  redis.pcall('XTRIM', UNREAD, 'MINID', '=', string.format('%.0f', now - FRESH_MS))
  redis.pcall('PEXPIRE', UNREAD, FRESH_MS)
end

-- Erase a document's changes, `id` being the last. A document that has changed more often than one script can erase takes all that
-- is as old out of the log.
local function erase_now(id)
  local now, last = clock(), math.min(#collected + MOST_ERASED, 4 * MOST_ERASED)
  while id do
    local entry = redis.call('XRANGE', LOG, id, id)[1]
    if not entry then -- trimmed
      return
    elseif #collected >= last then
      local ms, count = string.match(id, '^(%d+)%-(%d+)$')
      redis.call('XTRIM', LOG, 'MINID', '=', string.format('%s-%.0f', ms, count + 1))
      return
    end
    local after = redis.call('XRANGE', LOG, '(' .. id, '+', 'COUNT', 1)[1]
    collected[#collected + 1], following[id] = id, after and after[1] or '-'
    keep_fresh(entry, now)
    id = string.match(entry[2][6] or '', '^(%d+%-%d+) ')
  end
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
    redis.call('XTRIM', LOG, 'MINID', '=', string.format('%.0f', clock() - SOON_MS + DAY_MS)) -- a day, for clocks that differ
  end
end

-- Take what was collected out of the log. Who has read up to one of these changes goes on with the entry that came after it, so
-- ERASED knows that one.
local function erase_collected()
  if #collected == 0 then
    return
  end
  for from = 1, #collected, MOST_ARGUMENTS / 2 do
    local ids, known = slice(collected, from, math.min(from + MOST_ARGUMENTS / 2 - 1, #collected)), {}
    for i, id in ipairs(ids) do
      local after = following[id]
      while following[after] do
        after = following[after]
      end
      following[id] = after -- so that the way is short for those before it
      known[2 * i - 1], known[2 * i] = 0, id .. ' ' .. after
    end
    redis.call('XDEL', LOG, unpack(ids))
    redis.pcall('ZADD', ERASED, unpack(known))
  end
  redis.pcall('ZREMRANGEBYRANK', ERASED, 0, -MOST_KNOWN - 1)
  local expires_at = redis.call('PEXPIRETIME', LOG)
  if expires_at >= 0 then
    redis.call('PEXPIREAT', ERASED, string.format('%.0f', expires_at))
  end
  collected, following = {}, {}
end

-- Whether a position is a change that was erased, and nothing that came after it is missing.
local function is_erased_position(id)
  for _ = 1, MOST_KNOWN do
    local known = redis.pcall('ZRANGEBYLEX', ERASED, '[' .. id .. ' ', '(' .. id .. '!', 'LIMIT', 0, 1)[1] -- '!' follows ' '
    if not known then
      return false
    end
    id = string.sub(known, #id + 2)
    if redis.call('XRANGE', LOG, id, id)[1] then
      return true
    end
  end
  return false
end
