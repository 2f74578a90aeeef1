-- The sender of the bench: signed requests, made beforehand, one after the other. Argument after
-- `--`: the file that holds them, each behind its length in four digits. The summary at the end is
-- the redirect bench's.

dofile(debug.getinfo(1, "S").source:match("^@(.*)webhooks/load%.lua$") .. "redirect/load.lua")

local requests

function init(args)
  requests = assert(io.open(args[1], "rb"))
  requests:setvbuf("full", 1048576)
end

function request()
  local length = requests:read(4)
  if length == nil then error("all requests have been sent; the file needs more of them") end
  return requests:read(tonumber(length))
end
