-- Conditions on a member of a document, as far as Redis can judge them: it says of most documents that they cannot meet one.
-- What a document must have, so that it is not left out: functions of a field's text that say whether it may meet a condition.
-- They may say so of any text, but must not say no of one that does: the caller looks at the others. Only texts whose meaning is
-- plain are refused: no string with escapes, nothing with whitespace around it, which another client may have written.
local function conditions_at(at)
  local conditions = {}
  local function is_odd(text)
    return string.find(text, '^%s') or string.find(string.sub(text, -1), '%s') or string.find(text, '\\', 1, true)
  end
  local function texts_at(first, last)
    local meant = {}
    for i = first, last do
      meant[ARGV[i]] = true
    end
    return function(text)
      return meant[text] or is_odd(text)
    end
  end
  -- A number of 64 bits is nearly that of the text, so what lies near a bound may be on either side.
  local function range(low, high)
    return function(text)
      if #text <= 20 and string.find(text, '^-?%d+%.?%d*$') then
        local number = tonumber(text)
        local margin = 1e-9 * math.abs(number)
        return number >= low - margin - 1e-9 * math.abs(low) and number <= high + margin + 1e-9 * math.abs(high)
      end
      return string.find(text, '^[-%d]') or is_odd(text)
    end
  end
  while ARGV[at] do
    local may_meet, size
    if ARGV[at + 1] == 'texts' then
      size = 3 + tonumber(ARGV[at + 2])
      may_meet = texts_at(at + 3, at + size - 1)
    else
      size, may_meet = 4, range(tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
    end
    conditions[#conditions + 1] = {ARGV[at], may_meet}
    at = at + size
  end
  return conditions
end
