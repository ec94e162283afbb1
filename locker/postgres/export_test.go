package postgres

import (
	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
)

// Waiting returns how many calls of l wait for name: in line, or on the server.
func Waiting(l locker.Locker, name string) int { return l.(*leased.Engine).Waiting(name) }
