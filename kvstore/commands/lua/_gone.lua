-- Documents that are gone: saying so in the log, and taking their changes out of it (DESIGN 45).
-- An entry names the one before it of the same document. The last one is the document's entity-tag; of a document that has expired
-- LATEST knows it. They are collected, and erased when the script is done (scripts.py).

local SOON_MS = 30 * DAY_MS -- LATEST knows the documents that expire sooner; what has expired and is not known wrote nothing since
local MOST_EXPIRED = 1000 -- documents that one script records
local MOST_ERASED = 1000 -- changes in one script, about: some 7 ms
local MOST_OF_ONE, MOST_IN_ALL = 2000, 3000 -- changes of one document, which is erased as a whole; and of all in a batch
local MEMBERS_PER_CHANGE = 20 -- that take as long to read as what else is done for a change
local MOST_KNOWN = 2000 -- erased changes of which ERASED knows what came after them
local collected -- how many changes are to be erased, those with many members counted as several; nil where none are
local deferred_erasures -- nil, but in an atomic batch, which erases when it is done: the last changes of documents
local made -- what erasing() returns, once it was called

-- The functions that a script needs when a document is gone. Most writes need none, and Lua makes functions anew for every call.
local function erasing()
  if made then
    return made
  end
  local FRESH_MS = 2000 -- UNREAD has what was younger when it was erased, for so long: who follows may not have read it yet
  local ids, newer, has_fresh, now = {}, {}, false, clock() -- `newer` is the next change of the same document, among the ids
  made = {}

  -- Keep an entry for those who follow at this time, and for nobody else. Returns whether it is so new.
  local function keep_fresh(entry)
    if now - string.match(entry[1], '^%d+') >= FRESH_MS then
      return false
    end
    local bytes = 64
    for _, part in ipairs(entry[2]) do
      bytes = bytes + #part
    end
    has_fresh = true
    redis.pcall('XADD', UNREAD, 'MAXLEN', '=', math.max(1, math.floor(LOG_BYTES / bytes)), '*', 'id', entry[1], unpack(entry[2]))
    return true
  end

  -- Erase a document's changes, `id` being the last. A document that has changed more often than one script can erase takes all
  -- that is as old out of the log.
  function made.erase(id)
    local last, after = math.min((collected or 0) + MOST_OF_ONE, MOST_IN_ALL), nil
    while id do
      local entry = redis.call('XRANGE', LOG, id, id)[1]
      if not entry then -- trimmed
        return
      elseif (collected or 0) >= last then
        local ms, count = string.match(id, '^(%d+)%-(%d+)$')
        redis.call('XTRIM', LOG, 'MINID', '=', string.format('%s-%.0f', ms, count + 1))
        return
      end
      ids[#ids + 1], newer[id] = id, after
      local members = #entry[2] / 2 * (keep_fresh(entry) and 3 or 1) -- to write them takes twice as long as to read them
      collected = (collected or 0) + 1 + members / MEMBERS_PER_CHANGE
      id, after = string.match(entry[2][6] or '', '^(%d+%-%d+) '), id
    end
  end

  -- Take what was collected out of the log. Who has read up to one of these changes goes on with the entry that came after it, so
  -- ERASED knows that one.
  function made.finish()
    for from = 1, #ids, MOST_ARGUMENTS do
      redis.call('XDEL', LOG, unpack(ids, from, math.min(from + MOST_ARGUMENTS - 1, #ids)))
    end
    local known, after, members = {}, '-', 0
    for i = 1, math.min(#ids, MOST_KNOWN) do
      local next_id = newer[ids[i]] -- what comes after it also comes after this one, unless there is something in between
      local entry = redis.call('XRANGE', LOG, '(' .. ids[i], next_id and '(' .. next_id or '+', 'COUNT', 1)[1]
      if entry then
        after, members = entry[1], members + #entry[2] / 2
      elseif not next_id then
        after = '-'
      end
      if members > MOST_ERASED * MEMBERS_PER_CHANGE then -- the others are told as lost
        break
      end
      known[2 * i - 1], known[2 * i] = 0, ids[i] .. ' ' .. after
    end
    redis.pcall('ZADD', ERASED, unpack(known))
    redis.pcall('ZREMRANGEBYRANK', ERASED, 0, -MOST_KNOWN - 1)
    local expires_at = redis.call('PEXPIRETIME', LOG)
    if expires_at >= 0 then
      redis.call('PEXPIREAT', ERASED, string.format('%.0f', expires_at))
    end
    if has_fresh then
      redis.pcall('XTRIM', UNREAD, 'MINID', '=', string.format('%.0f', now - FRESH_MS))
      redis.pcall('PEXPIRE', UNREAD, FRESH_MS)
    end
    ids, newer, collected = {}, {}, nil
  end

  -- Say in the log that a document has expired, and nothing else of it.
  function made.expire(name)
    redis.call('XADD', LOG, '*', 'expire', name)
    unblock(name)
    local id = redis.pcall('HGET', LATEST, name)
    if type(id) == 'string' then
      redis.call('HDEL', LATEST, name)
      made.erase(id)
    end
    redis.call('XTRIM', LOG, 'MINID', '=', string.format('%.0f', now - SOON_MS + DAY_MS)) -- a day, for clocks that differ
  end

  -- Take a document that is no longer there out of the indexes, and say so in the log. Its first write is one that a full Redis
  -- lets through.
  function made.record(name)
    redis.call('ZREM', EXPIRY, name)
    redis.pcall('ZREM', NAMES, name) -- as in unblock()
    if string.sub(name, -1) ~= '/' then -- no namespace, as the root's index has them
      made.expire(name)
    end
    expire_namespace()
  end
  return made
end

-- Know the last change of a document that expires soon: its hash does not say any more when it has expired.
local function know_latest(name, id)
  if redis.pcall('HSET', LATEST, name, id) == 1 then -- of another type it knows nothing, and the entries stay until trimmed
    keep_as_names(LATEST)
  end
end

-- Move up to `most` expired documents of the namespace from the indexes into the log. A document that another client kept
-- alive, or made immortal, is still there. Returns how many were due; `most` if the others are too much work for one script.
local function sweep(prefix, now, most)
  local due = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', string.format('(%.0f', now), 'LIMIT', 0, most)
  for _, name in ipairs(due) do
    local at = redis.call('PEXPIRETIME', prefix .. name)
    if (collected or 0) >= MOST_ERASED then
      return most
    elseif at == -2 then
      erasing().record(name)
    elseif at == -1 then
      redis.call('ZREM', EXPIRY, name)
    else
      write_nothing() -- containers are read all the same
      redis.call('ZADD', EXPIRY, at, name)
    end
  end
  return #due
end

local has_swept = false -- a script that writes often does it once
-- After a write: often enough that the indexes hold little that has expired, seldom enough to cost nothing.
local function sweep_sometimes(prefix, now)
  if now % 16 == 0 and not has_swept then
    has_swept = true
    sweep(prefix, now, 100)
  end
end
