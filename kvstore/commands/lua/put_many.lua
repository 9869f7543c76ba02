-- Replace documents of one namespace as a whole, or create them: what put.lua does without options, for many, no two of one
-- name. It repeats replace() of _documents.lua in one function: calls of functions were a tenth of what a document costs Redis.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 length of the log
--        3… for each run of documents that are alike: how many, how many arguments each has, ttl_ms, what
--        follows the entity-tag in our own field; and for each document its name in names and log, field, value, …
-- reply  {'done', the entity-tags, a letter for each: 'c' created or 'r' replaced, as in put.lua the ms at which the
--        namespace's own keys expire, the time in ms of the last change}; {'refused'} where one would be, with nothing changed

-- The names, how many fields each has, its entity-tag ('' where nothing is), and what the expiry index says of it. Raises
-- WRONGTYPE, where one is not plainly ours (a job, or another client's hash), and where one has too many fields for one call.
local function inspect_all(prefix, last)
  local names, sizes, tags, run = {}, {}, {}, 3
  while run <= last do
    local width = tonumber(ARGV[run + 1])
    local stop = run + 3 + ARGV[run] * (width <= MOST_ARGUMENTS and width or error('too many fields'))
    for first = run + 4, stop, width do
      local name, i = ARGV[first], #names + 1
      local size = redis.call('HLEN', prefix .. name)
      names[i], sizes[i], tags[i] = name, size, ''
      if size > 0 then
        tags[i] = string.match(redis.call('HGET', prefix .. name, '$kv') or '', '^(%d+%-%d+) ') or error('not plainly ours')
      end
    end
    run = stop + 1
  end
  redis.call('ZCARD', NAMES) -- the log's type shows in the first write
  return names, sizes, tags, redis.call('ZMSCORE', EXPIRY, unpack(names))
end

-- Write them.
local function write_all(prefix, length, last, names, sizes, tags, due)
  local words, new_expiry, now, run, i = {}, false, nil, 3, 0
  deferred_trim = MOST_ENTRIES
  while run <= last do
    local width, ttl_ms, shape = tonumber(ARGV[run + 1]), ARGV[run + 2], ARGV[run + 3]
    local stop, lives_ms = run + 3 + ARGV[run] * width, tonumber(ttl_ms)
    for first = run + 4, stop, width do
      i = i + 1
      local name, size, bytes, keep = names[i], sizes[i], #shape, length
      local key, from, to = prefix .. name, first + 1, first + width - 1 -- its fields
      for at = from, to do
        bytes = bytes + #ARGV[at]
      end
      if bytes * length > LOG_BYTES then
        keep = math.max(1, math.floor(LOG_BYTES / bytes))
      end
      if due[i] and size == 0 then
        erasing().expire(name)
        due[i] = false
      end
      if to == last then -- the last one trims the log for all
        keep, deferred_trim = math.min(keep, deferred_trim + 1), nil
      end
      local id
      id, now = add(keep, 'put', name, 'ttl', ttl_ms, '$kv', tags[i] .. shape, unpack(ARGV, from, to))
      -- A document with as many fields as it will have, none of them new, is written over: DEL and making a hash cost more.
      if size * 2 ~= width + 1 or redis.call('HSET', key, '$kv', id .. shape, unpack(ARGV, from, to)) > 0 then
        if size > 0 then
          redis.call('UNLINK', key)
        end
        redis.call('HSET', key, '$kv', id .. shape, unpack(ARGV, from, to))
      end
      redis.call('PEXPIRE', key, ttl_ms)
      new_expiry = index(name, due[i], now + lives_ms) or new_expiry
      if lives_ms < SOON_MS then
        know_latest(name, id)
      end
      tags[i], words[i] = id, size > 0 and 'r' or 'c'
    end
    run = stop + 1
  end
  sweep_sometimes(prefix, now)
  return {'done', tags, table.concat(words), new_expiry, now}
end

local function put_many(_, _, last)
  local prefix, length = ARGV[1], tonumber(ARGV[2])
  local is_fine, names, sizes, tags, due = pcall(inspect_all, prefix, last)
  if not is_fine then
    return {'refused'}
  end
  local is_written, reply = pcall(write_all, prefix, length, last, names, sizes, tags, due)
  return is_written and reply or {'refused'} -- the first of them, by a full Redis
end
