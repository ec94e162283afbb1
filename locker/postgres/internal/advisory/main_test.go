//go:build unix

package advisory_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres/internal/advisory"
)

const ttl = 5 * time.Second

func TestMain(m *testing.M) {
	lockertest.Main(m, func(dsn string) (locker.Locker, error) {
		return advisory.New(dsn, &advisory.Options{TTL: ttl}), nil
	})
}

// partitions returns how many partitions to inject: n, or 60 where LOCKER_LONG is set.
func partitions(n int) int {
	if os.Getenv("LOCKER_LONG") != "" {
		return 60
	}
	return n
}

func open(dsn string) locker.Locker { return advisory.New(dsn, &advisory.Options{TTL: ttl}) }

// query returns the first column of the rows, as text.
func query(t testing.TB, s *pgtest.Server, sql string, args ...any) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		return fmt.Sprint(values[0]), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ofName restricts pg_locks to the lock of the name that is $1.
const ofName = `locktype = 'advisory' and objsubid = 1 and (classid::bigint << 32 | objid::bigint) = ('x' || substr(encode(sha256($1::bytea), 'hex'), 1, 16))::bit(64)::bigint`

// suite runs the conformance suite.
func suite(t *testing.T, s *pgtest.Server) {
	var mu sync.Mutex
	var all []locker.Locker
	faults := faults(s)
	faults.Waiters = func(t testing.TB, name string) int {
		n := len(query(t, s, "select pid from pg_locks where not granted and "+ofName, []byte(name)))
		mu.Lock()
		defer mu.Unlock()
		for _, l := range all {
			n += advisory.InLine(l, name)
		}
		return n
	}
	lockertest.Run(t, func(testing.TB) locker.Locker {
		l := open(s.DSN(""))
		mu.Lock()
		defer mu.Unlock()
		all = append(all, l)
		return l
	}, faults)
}

func faults(s *pgtest.Server) lockertest.Faults {
	return lockertest.Faults{
		Spec:       s.DSN(""),
		Partitions: partitions(8),
		Residue: func(t testing.TB) []string {
			return query(t, s, "select pid || ' ' || mode || ' ' || granted from pg_locks where locktype = 'advisory'")
		},
		Break: map[string]func(testing.TB, string){
			"backend terminated": func(t testing.TB, name string) {
				if got := query(t, s, "select pg_terminate_backend(pid, 10000) from pg_locks where granted and "+ofName, []byte(name)); !slices.Equal(got, []string{"true"}) {
					t.Fatalf("terminated: %v", got)
				}
			},
		},
		Network: func(t testing.TB) (locker.Locker, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "unix", s.Socket())
			return open(s.DSN(filepath.Dir(p.Addr()))), p
		},
		Through: func(t testing.TB) (string, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "unix", s.Socket())
			return s.DSN(filepath.Dir(p.Addr())), p
		},
		LongTTL:   func(testing.TB) locker.Locker { return advisory.New(s.DSN(""), nil) },
		KillFrees: time.Second, // half a TTL: the server sees the connection end
		Restart:   func(testing.TB) { s.Restart() },
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	suite(t, s)
}
