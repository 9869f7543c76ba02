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

local function act(act_name, key, first, last, before)
  if before and act_name == 'post' then
    local queue = ARGV[first + 1] .. '/'
    before.queues[queue] = before.queues[queue] or redis.call('ZSCORE', READY_AT, queue) or 'new'
  elseif before and act_name ~= 'get' and act_name ~= 'read_for_update' then
    remember(before, key, ARGV[first])
  end
  return ACTS[act_name](key, first, last)
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
    erasing().erase(id)
  end
  if deferred_trim and word == 'done' and deferred_trim < MOST_ENTRIES then
    redis.call('XTRIM', LOG, 'MAXLEN', '~', deferred_trim, 'LIMIT', 2 * MOST_TRIMMED) -- it may have added as many
  end
  return {word, replies, bytes}
end
