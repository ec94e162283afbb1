package advisory

import "github.com/flockctx/flockctx/locker"

// InLine returns how many calls of l wait for name behind the first one, which the server
// sees.
func InLine(l locker.Locker, name string) int { return l.(*engine).lines.Waiting(name) }
