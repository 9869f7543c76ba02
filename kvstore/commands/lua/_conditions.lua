-- Conditions on members of a document, judged by the texts of their fields: each says true where it is met, false where it is not,
-- and nil where that is not plain to see: of a string with escapes, of a number with an exponent or with many digits, and of
-- what another client may have written, with whitespace around it or without quotes. Then Python judges.
-- The arguments of a condition begin with the place of the member among those that are read. There follow
--   'text', a count, and so many texts, each preceded by 'is' if it means what is asked for, by 'may' if it may mean that; or
--   'number', whether a number meets it that is less, equal and greater ('1' or '0' each), the number to compare with, and 'short'
--   if that has at most 15 digits: doubles tell it from any other of so many; or
--   'rank', and the same: only numbers fail it.
local function conditions_at(at)
  local conditions = {}

  local function one_of(first, last)
    local is_sure = {}
    for i = first, last, 2 do
      is_sure[ARGV[i + 1]] = ARGV[i] == 'is'
    end
    return function(text)
      local sure = is_sure[text]
      if sure == nil and (string.byte(text) or 0) > 32 and string.byte(text, -1) > 32 and not string.find(text, '\\', 1, true) then
        return false
      end
      return sure or nil
    end
  end

  -- Of two different doubles it is known which of the texts is less.
  local function compared(less, equal, greater, bound, is_short, other)
    return function(text)
      local first = string.byte(text) or 0
      if first > 57 or (first > 32 and first < 45) then -- it begins like no number
        return other
      elseif (string.find(text, '^%-?[1-9]%d*%.?%d*$') and string.byte(text, -1) ~= 46) or string.find(text, '^%-?0%.%d+$')
        or text == '0' then
        local number = tonumber(text)
        if number < bound then
          return less
        elseif number > bound then
          return greater
        elseif is_short and #text <= 15 then
          return equal
        end
      end
    end
  end

  while ARGV[at] do
    local condition, kind = {place = tonumber(ARGV[at]) + 1}, ARGV[at + 1]
    if kind == 'text' then
      local last = at + 2 + 2 * tonumber(ARGV[at + 2])
      condition.judge, condition.missing, at = one_of(at + 3, last), false, last + 1
    else
      condition.missing = kind == 'number' and false or nil
      condition.judge = compared(ARGV[at + 2] == '1', ARGV[at + 3] == '1', ARGV[at + 4] == '1', tonumber(ARGV[at + 5]),
        ARGV[at + 6] == 'short', condition.missing)
      at = at + 7
    end
    conditions[#conditions + 1] = condition
  end
  return conditions
end
