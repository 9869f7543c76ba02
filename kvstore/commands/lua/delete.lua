-- Delete a document.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 If-Match  3 If-None-Match  4 If-Unmodified-Since (s)
--        5 length of the log
-- reply  {'deleted', the change's id}, {'missing'}, {'failed', what is there}, {'leased'}

local function delete(key, at)
  local exists, tag, _, job = inspect(key)
  if not exists then
    return {'missing'}
  end
  local refusal = refuse(key, exists, tag, job, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  if refusal then
    return refusal
  end
  check_types(ARGV[at])
  local id = remove(key, ARGV[at], ARGV[at + 4])
  erase_changes(ARGV[at], tag)
  if job or not tag then -- another client's hash may stand where a job was
    unblock(ARGV[at])
  end
  return {'deleted', id}
end
