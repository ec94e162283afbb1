-- What each script begins with. All that is kept is one hash, KEYS[1], so that a server
-- that loses any of it loses all of it:
--
--   run    the server that wrote last, and its term as a primary
--   since  when that was first seen here, in microseconds of the server's clock
--   ttl    the longest TTL of any claim, in microseconds
--   token  the last fencing token
--   n:NAME the claims on a name, one per line, as written by write()
local key = KEYS[1]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function int(n) return string.format('%.0f', n) end

-- term names this server and its time as a primary. A restart changes the run_id. A server
-- that is demoted and promoted again without one has another master_replid, and may not know
-- what was locked meanwhile.
local function term()
	local info = redis.pcall('INFO', 'server', 'replication')
	if type(info) ~= 'string' then -- before Redis 7
		info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
	end
	local run = string.match(info, 'run_id:(%w+)')
	return run and run .. '-' .. (string.match(info, 'master_replid:(%w+)') or '')
end

-- quiet returns when this server may grant: a TTL after it was first seen. Until then, what
-- it does not know, since it was restarted, promoted or emptied, may be held. It also returns
-- the longest TTL.
local function quiet(ttl)
	local run = term()
	if not run then
		return nil
	end
	local m = redis.call('HMGET', key, 'run', 'since', 'ttl')
	local since, longest = tonumber(m[2] or now), tonumber(m[3] or 0)
	local new = m[1] ~= run or not m[2] or since > now
	if new or ttl > longest then
		if new then
			since = now
		end
		longest = math.max(ttl, longest)
		redis.call('HSET', key, 'run', run, 'since', int(since), 'ttl', int(longest))
	end
	return since + longest, longest
end

-- unstoppable lets the script write where the memory is full: the server refuses what may need
-- more, but not to a script that has written before. There is no such field.
local function unstoppable() redis.call('HDEL', key, '') end

local function read(name)
	local claims = {}
	local text = redis.call('HGET', key, 'n:' .. name)
	for id, shared, since, granted, expires, token, owner, rest in
		string.gmatch(text or '', '(%S+) (%d) (%d+) (%d+) (%d+) (%d+) (%S+) ([^\n]*)') do
		claims[#claims + 1] = {
			id = id, shared = shared, since = tonumber(since), granted = tonumber(granted),
			expires = tonumber(expires), token = token, owner = owner, rest = rest,
		}
	end
	return claims
end

local function write(name, claims)
	local lines = {}
	for i, c in ipairs(claims) do
		lines[i] = c.id .. ' ' .. c.shared .. ' ' .. int(c.since) .. ' ' .. int(c.granted) .. ' ' .. int(c.expires)
			.. ' ' .. c.token .. ' ' .. c.owner .. ' ' .. c.rest
	end
	if #lines == 0 then
		redis.call('HDEL', key, 'n:' .. name)
	else
		redis.call('HSET', key, 'n:' .. name, table.concat(lines, '\n'))
	end
end

-- blocks reports whether a waiting claim c has to wait for b.
local function blocks(b, c)
	if b.id == c.id or (b.shared == '1' and c.shared == '1') then
		return false
	end
	return b.granted > 0 or b.since < c.since or (b.since == c.since and b.id < c.id)
end
