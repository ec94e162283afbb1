-- Renews the claims whose names and IDs follow the TTL, and returns those IDs that are here.
local ttl = tonumber(ARGV[1])
unstoppable()
quiet(ttl)
local names, wanted = {}, {}
for i = 2, #ARGV, 2 do
	local name = ARGV[i]
	if not wanted[name] then
		names[#names + 1] = name
		wanted[name] = {}
	end
	wanted[name][ARGV[i + 1]] = true
end
local here = {}
for _, name in ipairs(names) do
	local claims, found = read(name), false
	for _, c in ipairs(claims) do
		if wanted[name][c.id] and c.granted > 0 then
			c.expires = now + ttl
			here[#here + 1] = c.id
			found = true
		end
	end
	if found then
		write(name, claims)
	end
end
return here
