-- Read documents that a query has found.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 'values' or 'keys'  4 most bytes of values, about  5 how many members to read of each, 0 for all of them, then their
--        fields; after these the names, relative to the container
-- reply  {tag, the time in ms where the container is worked as a queue, else nil, items}; an item is as list.lua has it, or 1 where
--        the document is gone. There are fewer than names if these have many bytes.

local function read_found(_, at, last)
  local prefix, container, most_bytes, size = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local read = (size > 0 or ARGV[at + 2] == 'keys') and {'HMGET', '', '$kv', unpack(ARGV, at + 5, at + 4 + size)} or nil
  local items, bytes, members = {}, 0, 0
  for i = at + 5 + size, last do
    local item = bytes <= most_bytes and members <= MOST_MEMBERS and item_at(prefix .. container .. ARGV[i], ARGV[i], read)
    if item == false then
      break
    end
    items[#items + 1] = item or 1
    members = members + (item and #item[2] or 0) / 2
    for _, part in ipairs(item and item[2] or {}) do
      bytes = bytes + #part
    end
  end
  return {last_change() or '0-0', time_of_queue(container, clock()), items}
end
