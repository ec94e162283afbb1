-- Takes the lock, or a place in the queue for it, or keeps what the claim has. A claim to
-- try that would have to wait leaves nothing.
local name, id, owner, shared, try = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
local ttl, waited, rest = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local may, longest = quiet(ttl)
if not may then
	return redis.error_reply('FLOCKCTX the server does not tell its run_id')
end
local me
local claims = {}
for _, c in ipairs(read(name)) do
	c.expires = math.min(c.expires, now + longest) -- later only where the clock was set back
	if c.id == id and (c.granted == 0 or c.expires > now) then
		me = c -- an expired grant is none: others may have had the lock since
	elseif c.id ~= id and c.expires > now then
		claims[#claims + 1] = c
	end
end
me = me or {id = id, shared = shared, since = now - waited, granted = 0, token = '0', owner = owner, rest = rest}
if me.granted == 0 then
	local look
	for _, c in ipairs(claims) do
		if blocks(c, me) then
			look = math.min(look or c.expires, c.expires)
		end
	end
	if not look and may > now then
		look = may
	end
	if not look then
		me.granted = now
		if shared == '0' then
			-- The clock, so that tokens rise also where the last of them is lost.
			me.token = int(math.max(tonumber(redis.call('HGET', key, 'token') or 0) + 1, now))
			redis.call('HSET', key, 'token', me.token)
		end
	elseif try then
		write(name, claims)
		return {0, '0', 0}
	else
		me.expires = now + ttl
		claims[#claims + 1] = me
		write(name, claims)
		return {0, '0', math.ceil((look - now) / 1000)}
	end
end
me.expires = now + ttl
claims[#claims + 1] = me
write(name, claims)
return {1, me.token, 0}
