-- wrk: PUT or GET random documents of several namespaces, in the order of their names.
--   wrk -s spread.lua URL -- METHOD COUNT BODY SPACE…      the path is /SPACE/n, n from 1 to COUNT

local count, made, at = 0, {}, 0

function init(args)
  local method, body = args[1], args[3] ~= "" and args[3] or nil
  count = tonumber(args[2])
  if body then
    wrk.headers["Content-Type"] = "application/json"
  end
  for i = 4, #args do
    local head, tail = wrk.format(method, "/" .. args[i] .. "/@", nil, body):match("^(.-)@(.*)$")
    made[#made + 1] = {head, tail}
  end
end

function request()
  at = at % #made + 1
  return made[at][1] .. math.random(count) .. made[at][2]
end
