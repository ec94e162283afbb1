package postgres

import "github.com/flockctx/flockctx/locker"

// Waiting returns how many calls of l wait for name: in line, or on the server.
func Waiting(l locker.Locker, name string) (n int) {
	e := l.(*engine)
	e.mu.Lock()
	defer e.mu.Unlock()
	n = e.lines.Waiting(name)
	for _, c := range e.waiting {
		if c.call.Name == name && !c.placed.IsZero() {
			n++
		}
	}
	return n
}
