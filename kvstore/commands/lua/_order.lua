-- The order of the members of a document. The shape is what follows the entity-tag in our own field: ' object', then the list of
-- names if the document has one. In the list null stands for the names that are not in it, sorted, and the last place of a name
-- counts. Names are all that cjson sees.

-- The shape after members were added: their names come last, in the order of the patch.
local function with_added(shape, fields)
  if #fields == 0 or (shape ~= ' object' and string.sub(shape, -1) ~= ']') then -- the second is another client's
    return shape
  end
  local names = {}
  for i, field in ipairs(fields) do
    names[i] = string.find(field, '^%$kv%$+$') and string.sub(field, 1, -2) or field
  end
  local added = string.sub(cjson.encode(names), 2)
  if shape == ' object' then
    return ' object [null,' .. added
  end
  -- No name has such a text, since a quote in it is escaped.
  local has_null = string.sub(shape, 1, 14) == ' object [null,' or string.find(shape, '",null,"', 1, true)
  return string.sub(shape, 1, -2) .. (has_null and ',' or ',null,') .. added
end

-- The shape without the names that are not in `flat`, and with each name once.
local function without_gone(shape, flat)
  local is_there, left = {}, {}
  for i = 1, #flat, 2 do
    is_there[flat[i]] = true
  end
  local is_json, names = pcall(cjson.decode, string.sub(shape, #' object ' + 1))
  names = is_json and type(names) == 'table' and names or {}
  for i = #names, 1, -1 do
    local name = names[i]
    local field = type(name) == 'string' and (string.find(name, '^%$kv%$*$') and name .. '$' or name)
    if field and is_there[field] then
      is_there[field] = nil
      left[#left + 1] = cjson.encode(name)
    elseif name == cjson.null and #left > 0 then
      left[#left + 1] = 'null'
    end
  end
  local ordered = {}
  for i = #left, 1, -1 do
    ordered[#ordered + 1] = left[i]
  end
  return ' object' .. (#left > 0 and ' [' .. table.concat(ordered, ',') .. ']' or '')
end
