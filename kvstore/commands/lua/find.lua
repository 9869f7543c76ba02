-- Look at documents below a container, in order of name, and leave out those that cannot meet some conditions.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 the name after which to start, '' for the first  4 'asc' or 'desc'  5 'direct' or 'recursive'  6 If-None-Match
--        7 most documents to look at  8 most rows  9 most bytes of rows  10 'count' to count those that are known to meet all
--        conditions, 'members' or 'whole' for a row of each that may  11 how many members a row has, then their fields; after
--        these conditions, as _conditions.lua has them
-- reply  {'again'} and {'same', tag} as list.lua has them, or {'found', tag, the last name that was looked at if there are more,
--        how many were looked at, how many were counted, rows}; a row is {name, its members}, each false if it is not there, or
--        {name, {all fields}} of a document that is not an object, or of any that is wanted whole

local MOST_READ = 4194304 -- bytes of members, about

local function find(_, at)
  local prefix, container, after = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local descending, direct, none_match = ARGV[at + 3] == 'desc', ARGV[at + 4] == 'direct', ARGV[at + 5]
  local most, most_rows, most_bytes = tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8])
  local counts, is_whole, size = ARGV[at + 9] == 'count', ARGV[at + 9] == 'whole', tonumber(ARGV[at + 10])
  local instead, tag = begin_page(prefix, clock(), none_match)
  if instead then
    return instead
  end

  local read, conditions = {'HMGET', '', '$kv', unpack(ARGV, at + 11, at + 10 + size)}, conditions_at(at + 11 + size)
  -- Whether a document meets all conditions: true, false, or nil.
  local function judged(row)
    local verdict = true
    for _, condition in ipairs(conditions) do
      local text, is_met = row[condition.place], condition.missing
      if text then
        is_met = condition.judge(text)
      end
      if is_met == false then
        return false
      end
      verdict = is_met and verdict
    end
    return verdict
  end

  local next_name, skip = names_below(container, after, descending, direct, math.min(most, most_rows) + 1, most + 1)
  local rows, last, looked, counted, bytes, read_bytes, members = {}, false, 0, 0, 0, 0, 0
  for name in next_name do
    if looked >= most or #rows >= most_rows or bytes > most_bytes or read_bytes > MOST_READ or members > MOST_MEMBERS then
      return {'found', tag, last, looked, counted, rows}
    end
    local slash, key = direct and string.find(name, '/', 1, true), prefix .. container .. name
    read[2], looked, last = key, looked + 1, name
    local row = not slash and name ~= '' and redis.pcall(unpack(read))
    if slash then
      last = string.sub(name, 1, slash)
      skip(last)
    elseif row and not row.err and (row[1] or redis.call('EXISTS', key) == 1) then
      local may_be_scalar = row[1] and string.find(row[1], ' value', 1, true)
      local row_bytes = 0
      for i = 2, size + 1 do
        row_bytes = row_bytes + #(row[i] or '')
      end
      read_bytes = read_bytes + row_bytes
      local is_met = not may_be_scalar and judged(row)
      if is_met and counts then
        counted = counted + 1
      elseif is_met ~= false or may_be_scalar then
        if is_whole or may_be_scalar then
          row[2] = redis.call('HGETALL', key)
          members = members + #row[2] / 2
          for _, part in ipairs(row[2]) do
            row_bytes = row_bytes + #part
          end
        end
        row[1] = name
        rows[#rows + 1] = row
        bytes = bytes + row_bytes
      end
    elseif row and not row.err then
      if record_gone(container .. name) then
        return {'again'}
      end
    end
  end
  return {'found', tag, false, looked, counted, rows}
end
