//go:build linux

package flockctx

// ParsedLock is what the parser makes of a line.
type ParsedLock = procLock

var ParseLock = parseLock
var ParseLocks = parseLocks
var AppendEntries = appendEntries
