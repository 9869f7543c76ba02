-- Carry out several requests on one namespace, one after the other.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 'atomic': where one is refused none is applied; else 'each'
--        3 most bytes of the replies, about: when there are as many, what is left is refused  4 most work, in the time of
--        reading a member, about: of 'each' the rest is for another call, 'atomic' is refused  5… for each request its
--        script's name, how many arguments it has, and these
-- reply  {'done', the replies, their bytes}, {'read', the same} where all were 'read_for_update'; or {'undone', which one was refused,
--        counted from 0, its reply}, {'lost', the same} where that was not the last word; or {'too much work'} where an atomic
--        one was undone. A reply is what the script of that name answers, {'error', what Redis said}, or {'too much'}. Where
--        Redis refuses an atomic one as a whole, what it said is an error.

local ACTS = {get = get, put = put, patch = patch, set_ttl = set_ttl, delete = delete, post = post, read_for_update = read_for_update}
local REFUSALS = {
  failed = true, missing = true, leased = true, lost = true, error = true,
  ['no sum'] = true, ['too large'] = true, ['too many'] = true, ['too much'] = true,
}

-- The work of a request, whatever it is about; of each member of the document that is stored, and of each that is sent. Measured:
-- 0.5 µs to read a member; 15 µs for a request; 1.7 to patch a member, 1.3 to put one, and 0.4 to put it back.
local REQUEST_WORK = 30
local STORED_WORK = {patch = 3, post = 0}
local SENT_WORK = {patch = 1, put = 3, post = 3}
local ANSWERED_WORK, KEPT_WORK = 1 / 512, 1 / 256 -- of a byte that is answered, or kept to be put back

-- How much work a request will be, about: what it does to a single document is bounded by the size of documents.
local function estimate(act_name, key, arguments)
  local sent, stored = SENT_WORK[act_name] or 0, STORED_WORK[act_name] or 1
  local size = stored > 0 and redis.pcall('HLEN', key) or 0
  return REQUEST_WORK + sent * arguments / 2 + stored * (type(size) == 'number' and size or 0)
end

-- What a document and its places in the indexes are before the batch. Of a container it is known whether it was a queue.
local function remember(before, key, name)
  if before.documents[key] then
    return
  end
  local was = {name = name, dump = redis.call('DUMP', key)}
  local bytes = was.dump and redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0) -- a dump is compressed
  before.bytes = before.bytes + (type(bytes) == 'number' and bytes or was.dump and #was.dump or 0) -- fakeredis does not know
  if not was.dump and redis.call('ZSCORE', EXPIRY, name) and check_types(name) then
    record_expired(name) -- it has expired, whatever becomes of the batch
  elseif was.dump then
    was.expires_at = redis.call('PEXPIRETIME', key)
    was.due = redis.call('ZSCORE', EXPIRY, name)
    was.named = was.due or redis.call('ZSCORE', NAMES, name)
    was.ready_at = redis.call('ZSCORE', READY_AT, name)
  end
  before.documents[key] = was
end

local function act(act_name, key, first, last, before)
  if before and act_name == 'post' then
    local queue = ARGV[first + 1] .. '/'
    before.queues[queue] = before.queues[queue] or redis.call('ZSCORE', READY_AT, queue) or 'new'
  elseif before and act_name ~= 'get' and act_name ~= 'read_for_update' then
    remember(before, key, ARGV[first])
  end
  return ACTS[act_name](key, first, last)
end

-- Put everything back. What the log says has expired has expired all the same.
local function undo(before, last_id)
  deferred_erasures = nil
  for queue, was in pairs(before.queues) do
    if was == 'new' then
      redis.call('ZREM', READY_AT, queue)
    end
  end
  for key, was in pairs(before.documents) do
    redis.call('UNLINK', key)
    unblock(was.name)
    redis.call('ZREM', EXPIRY, was.name)
    redis.call('ZREM', NAMES, was.name)
    if was.dump then
      redis.call('RESTORE', key, 0, was.dump)
      if was.expires_at >= 0 then
        redis.call('PEXPIREAT', key, was.expires_at)
      end
      if was.due then
        redis.call('ZADD', EXPIRY, was.due, was.name)
      end
      if was.named then
        redis.call('ZADD', NAMES, 0, was.name)
      end
      if was.ready_at then
        block(was.name, was.ready_at)
      end
    end
    local is_hash, _, tag = pcall(inspect, key)
    if is_hash and tag then
      know_latest(was.name, tag, was.expires_at >= 0 and was.expires_at - clock() or SOON_MS, true)
    else
      redis.pcall('HDEL', LATEST, was.name)
    end
  end
  if before.expires_at >= 0 and redis.call('EXISTS', NAMES) == 1 then -- of all, though the names may have gone and come back
    live_until(before.expires_at)
  else
    expire_namespace()
  end
  for _, entry in ipairs(redis.call('XRANGE', LOG, '(' .. last_id, '+')) do
    if entry[2][1] ~= 'expire' then
      redis.call('XDEL', LOG, entry[1])
    end
  end
end

-- How many bytes a reply has, about.
local function weigh(reply)
  local bytes = 0
  for _, part in ipairs(reply) do
    bytes = bytes + (type(part) == 'table' and weigh(part) or type(part) == 'string' and #part or 0)
  end
  return bytes
end

local function batch(_, at, last)
  local prefix, atomic = ARGV[at], ARGV[at + 1] == 'atomic'
  local most_bytes, most_work = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local newest = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1]
  local before = {documents = {}, queues = {}, bytes = 0, expires_at = redis.call('PEXPIRETIME', LOG)}
  local replies, bytes, work, word = {}, 0, 0, 'read'
  deferred_trim, deferred_erasures = atomic and MOST_ENTRIES or nil, atomic and {} or nil -- what they take could not be put back
  at = at + 4
  while at <= last do
    local act_name, first = ARGV[at], at + 2
    local stop = first + ARGV[at + 1] - 1
    local key = prefix .. ARGV[first]
    work = work + estimate(act_name, key, stop - first)
    if #replies > 0 and work + bytes * ANSWERED_WORK + before.bytes * KEPT_WORK > most_work then
      if not atomic then
        break
      end
      undo(before, newest and newest[1] or '0-0')
      return {'too much work'}
    end
    local ok, reply, thrown = true, {'too much'}, nil
    if bytes < most_bytes then
      ok, reply = pcall(act, act_name, key, first, stop, atomic and before)
    end
    if not ok then
      thrown = reply
      reply = {'error', type(reply) == 'table' and reply.err or tostring(reply)}
    elseif act_name == 'post' and reply[3] then
      before.documents[prefix .. reply[3]] = {name = reply[3]}
    end
    if atomic and REFUSALS[reply[1]] then
      undo(before, newest and newest[1] or '0-0')
      if thrown and string.sub(reply[2], 1, 9) ~= 'WRONGTYPE' then
        error(thrown, 0)
      end
      if reply[1] == 'lost' or act_name == 'read_for_update' then
        return {'lost', #replies, reply}
      end
      return {'undone', #replies, reply}
    end
    replies[#replies + 1] = reply
    bytes = bytes + weigh(reply)
    word = act_name == 'read_for_update' and word or 'done'
    at = stop + 1
  end
  for _, id in ipairs(deferred_erasures or {}) do
    erase_now(id)
  end
  if deferred_trim and word == 'done' and deferred_trim < MOST_ENTRIES then
    redis.call('XTRIM', LOG, 'MAXLEN', '~', deferred_trim, 'LIMIT', 2 * MOST_TRIMMED) -- it may have added as many
  end
  return {word, replies, bytes}
end
