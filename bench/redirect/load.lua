-- The shoppers of the bench: every request is a random offer for a random user, with the headers a
-- browser sends. Arguments after `--`: offers file, its record width, users file, its record width,
-- seed. The files hold records of one width without separators, so that drawing one out of a
-- million costs what drawing one out of a thousand does.

local agents = {
  "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
  "Mozilla/5.0 (Linux; Android 14; SM-A156E) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36",
  "Mozilla/5.0 (Linux; Android 13; RMX3870) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36",
  "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1",
  "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15",
  "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
  "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:143.0) Gecko/20100101 Firefox/143.0",
  "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
}
local referers = {
  "https://coupons.example/stores/fashion",
  "https://coupons.example/search?q=headphones",
  "https://blog.coupons.example/festive-sale",
}

local offers, users
local offer_width, user_width
local offer_count, user_count
local heads = {}
local random, sub = math.random, string.sub

local function read(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read("*a")
  file:close()
  return content
end

function init(args)
  offers, offer_width = read(args[1]), tonumber(args[2])
  users, user_width = read(args[3]), tonumber(args[4])
  math.randomseed(tonumber(args[5]))
  offer_count = #offers / offer_width
  user_count = #users / user_width
  for _, agent in ipairs(agents) do
    for _, referer in ipairs(referers) do
      heads[#heads + 1] = " HTTP/1.1\r\nHost: go.coupons.example\r\nUser-Agent: " .. agent
        .. "\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
        .. "\r\nAccept-Language: en-IN,en;q=0.9,hi;q=0.8\r\nAccept-Encoding: gzip, deflate, br"
        .. "\r\nReferer: " .. referer .. "\r\n\r\n"
    end
  end
end

function request()
  local offer = (random(offer_count) - 1) * offer_width
  local user = (random(user_count) - 1) * user_width
  return "GET /out/" .. sub(offers, offer + 1, offer + offer_width) .. "/"
    .. sub(users, user + 1, user + user_width) .. heads[random(#heads)]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nsummary {"requests":%d,"seconds":%.6f,"p50_ms":%.3f,"p90_ms":%.3f,"p99_ms":%.3f,'
      .. '"p999_ms":%.3f,"max_ms":%.3f,"bad_statuses":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
