-- Removes what has expired of some names, and returns where to go on, 0 at the end.
unstoppable()
local page = redis.call('HSCAN', key, ARGV[1], 'MATCH', 'n:*', 'COUNT', 100)
for i = 1, #page[2], 2 do
	local name = string.sub(page[2][i], 3)
	local all, claims = read(name), {}
	for _, c in ipairs(all) do
		if c.expires > now then
			claims[#claims + 1] = c
		end
	end
	if #claims < #all then
		write(name, claims)
	end
end
return page[1]
