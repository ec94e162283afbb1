package lockview

// ParsedLock is what the parser makes of a line.
type ParsedLock = lock

var (
	ParseLock  = parseLock
	ParseLocks = parseLocks
)
