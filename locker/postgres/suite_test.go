//go:build unix

package postgres_test

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres"
)

// lockers are all that a suite has opened. Of the goroutines of one process, the server
// sees only the first that waits.
type lockers struct {
	mu  sync.Mutex // guards all
	all []locker.Locker
}

func (l *lockers) add(one locker.Locker) locker.Locker {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, one)
	return one
}

func (l *lockers) waiting(name string) (n int) {
	if name == "fifo" {
		// The server learns by a call's own word when its wait began, as exactly
		// as statements take equally long to arrive.
		time.Sleep(200 * time.Millisecond)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		n += postgres.Waiting(one, name)
	}
	return n
}

// suite runs the conformance suite with Lockers that reach the server s through the
// socket in dir. A DSN gets prefix and suffix.
func suite(t *testing.T, s *pgtest.Server, dir, prefix, suffix string) {
	var all lockers
	through := func(t testing.TB, dir string) locker.Locker {
		return all.add(open(t, prefix+s.DSN(dir)+suffix))
	}
	socket := filepath.Join(dir, filepath.Base(s.Socket()))
	lockertest.Run(t, func(t testing.TB) locker.Locker { return through(t, dir) }, lockertest.Faults{
		Spec:       prefix + s.DSN(dir) + suffix,
		Partitions: partitions(8),
		Residue: func(t testing.TB) []string {
			// What has expired belongs to pools that were closed before they had
			// given it up.
			return query(t, s, "select name || ' ' || id from flockctx.queue where expires_in > '0'")
		},
		Waiters: func(t testing.TB, name string) int {
			others := query(t, s, "select id from flockctx.claims where granted is null and name = $1 and pid <> $2", []byte(name), os.Getpid())
			return all.waiting(name) + len(others)
		},
		Break: map[string]func(testing.TB, string){
			"claim deleted": func(t testing.TB, name string) {
				if n := query(t, s, "with gone as (delete from flockctx.claims where name = $1 and granted is not null returning 1) select count(*) from gone", []byte(name)); !slices.Equal(n, []string{"1"}) {
					t.Fatalf("deleted: %v", n)
				}
			},
		},
		Network: func(t testing.TB) (locker.Locker, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "unix", socket)
			return through(t, dirOf(p)), p
		},
		Through: func(t testing.TB) (string, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "unix", socket)
			return prefix + s.DSN(dirOf(p)) + suffix, p
		},
		Leaders: leaders(),
		Restart: func(testing.TB) { s.Restart() },
	})
}

func TestConformance(t *testing.T) {
	t.Parallel()
	s := start(t)
	suite(t, s, s.Dir(), "", "")
}

func TestConformanceSQL(t *testing.T) {
	t.Parallel()
	s := start(t)
	suite(t, s, s.Dir(), "sql ", "")
}

// TestConformancePooler: in transaction mode, statements of one client go to whichever
// of the server's sessions is free. pgx must not rely on prepared ones.
func TestConformancePooler(t *testing.T) {
	t.Parallel()
	s := start(t, "max_connections=20")
	suite(t, s, s.Bouncer(t, "transaction", "default_pool_size = 5", "max_client_conn = 1000"), "", " default_query_exec_mode=exec")
}
