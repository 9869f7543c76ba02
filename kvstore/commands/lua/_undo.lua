-- What an atomic batch puts back when one of its requests is refused.

-- What a document and its places in the indexes are before the batch. Of a container it is known whether it was a queue.
local function remember(before, key, name)
  if before.documents[key] then
    return
  end
  local was = {name = name, dump = redis.call('DUMP', key)}
  local bytes = was.dump and redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0) -- a dump is compressed
  before.bytes = before.bytes + (type(bytes) == 'number' and bytes or was.dump and #was.dump or 0) -- fakeredis does not know
  if not was.dump and redis.call('ZSCORE', EXPIRY, name) and check_types(name) then
    erasing().record(name) -- it has expired, whatever becomes of the batch
  elseif was.dump then
    was.expires_at = redis.call('PEXPIRETIME', key)
    was.due = redis.call('ZSCORE', EXPIRY, name)
    was.named = was.due or redis.call('ZSCORE', NAMES, name)
    was.ready_at = redis.call('ZSCORE', READY_AT, name)
  end
  before.documents[key] = was
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
    if is_hash and tag and was.expires_at >= 0 and was.expires_at - clock() < SOON_MS then
      know_latest(was.name, tag)
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
