-- Renews the claims whose names and IDs follow the TTL, and returns those IDs that are here.
local ttl = tonumber(ARGV[1])
quiet(ttl)
local here = {}
for i = 2, #ARGV, 2 do
	local claims = read(ARGV[i])
	for _, c in ipairs(claims) do
		if c.id == ARGV[i + 1] and c.granted > 0 then
			c.expires = now + ttl
			here[#here + 1] = c.id
			write(ARGV[i], claims)
			break
		end
	end
end
return here
