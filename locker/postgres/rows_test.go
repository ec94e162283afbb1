//go:build unix

package postgres_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/postgres"
)

func dirOf(socket string) string { return filepath.Dir(socket) }

// lockers are all that a suite has opened. Of the goroutines of one process, the server
// sees only the first that waits.
type lockers struct {
	mu  sync.Mutex
	all []locker.Locker
}

func (l *lockers) add(one locker.Locker) locker.Locker {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, one)
	return one
}

func (l *lockers) waiting(name string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		n += postgres.Waiting(one, name)
	}
	return n
}

func TestConformance(t *testing.T) {
	t.Parallel()
	s := start(t)
	suite(t, s, s.DSN(""), func(t testing.TB, dir string, ttl time.Duration) locker.Locker {
		return openTTL(t, s.DSN(dir), ttl)
	})
}
