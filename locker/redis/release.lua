-- Removes a claim, and tells those that need not wait any more.
local name, id, channel = ARGV[1], ARGV[2], ARGV[3]
unstoppable()
local found, claims = 0, {}
for _, c in ipairs(read(name)) do
	if c.id == id then
		found = 1
	elseif c.expires > now then
		claims[#claims + 1] = c
	end
end
write(name, claims)
for _, w in ipairs(claims) do
	local free = w.granted == 0
	for _, b in ipairs(claims) do
		free = free and not blocks(b, w)
	end
	if free then
		redis.pcall('PUBLISH', channel .. w.owner, w.id)
	end
end
return found
