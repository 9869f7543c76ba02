-- Replace documents of one namespace as a whole, or create them: what put.lua does without options, for many, no two of one name.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 length of the log
--        3… for each run of documents that are alike: how many, how many arguments each has, ttl_ms, what follows the
--        entity-tag in our own field; and for each document its name in names and log, field, value, …
-- reply  {'done', the entity-tags, a letter for each: 'c' created or 'r' replaced, as in put.lua the ms at which the
--        namespace's own keys expire, the time in ms of the last change}; {'refused'} where one would be, with nothing changed

-- How many fields each has, its entity-tag, and what the expiry index says of it. Raises WRONGTYPE, and where one is not plainly ours: a job,
-- or another client's hash.
local function inspect_all(prefix, names)
  local sizes, tags = {}, {}
  for i, name in ipairs(names) do
    sizes[i] = redis.call('HLEN', prefix .. name)
    tags[i] = sizes[i] > 0 and string.match(redis.call('HGET', prefix .. name, '$kv') or '', '^(%d+%-%d+) ')
    if sizes[i] > 0 and not tags[i] then
      error('not plainly ours')
    end
  end
  redis.call('ZCARD', NAMES) -- the log's type shows in the first write
  return sizes, tags, redis.call('ZMSCORE', EXPIRY, unpack(names))
end

-- Write them: ARGV[runs..last] are the runs of documents.
local function write_all(prefix, length, runs, last, sizes, before, due)
  local tags, words, new_expiry, now = {}, {}, false, nil
  local run = runs
  deferred_trim = MOST_ENTRIES
  while run <= last do
    local count, width, ttl_ms, shape = tonumber(ARGV[run]), tonumber(ARGV[run + 1]), ARGV[run + 2], ARGV[run + 3]
    run = run + 4 + count * width
    for first = run - count * width, run - 1, width do
      local i = #tags + 1
      local name = ARGV[first]
      if first + width > last then -- the last one trims the log for all
        length, deferred_trim = math.min(length, deferred_trim + 1), nil
      end
      local tag, _, time, new = replace(
        prefix .. name, sizes[i], before[i], '', due[i], length, 'put', name, ttl_ms, nil, shape, first + 1, first + width - 1
      )
      tags[i], words[i], now, new_expiry = tag, sizes[i] > 0 and 'r' or 'c', time, new or new_expiry
    end
  end
  sweep_sometimes(prefix, now)
  return {'done', tags, table.concat(words), new_expiry, now}
end

local function put_many(_, at, last)
  local prefix, length, runs = ARGV[at], tonumber(ARGV[at + 1]), at + 2
  local names, run = {}, runs
  while run <= last do
    local count, width = tonumber(ARGV[run]), tonumber(ARGV[run + 1])
    run = run + 4 + count * width
    for first = run - count * width, run - 1, width do
      names[#names + 1] = ARGV[first]
    end
  end
  local is_fine, sizes, before, due = pcall(inspect_all, prefix, names)
  if not is_fine then
    return {'refused'}
  end
  local is_written, reply = pcall(write_all, prefix, length, runs, last, sizes, before, due)
  return is_written and reply or {'refused'} -- the first of them, by a full Redis
end
