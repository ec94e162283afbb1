-- The claims on a name that have not expired.
local lines = {}
for _, c in ipairs(read(ARGV[1])) do
	if c.expires > now then
		lines[#lines + 1] = {c.shared, int(c.since), int(c.granted), c.token, c.rest}
	end
end
return lines
