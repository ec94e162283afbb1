//go:build unix

package postgres_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres"
)

const ttl = 2 * time.Second

func TestMain(m *testing.M) {
	lockertest.Main(m, func(dsn string) (locker.Locker, error) {
		pool, err := pgxpool.New(context.Background(), dsn)
		if err != nil {
			return nil, err
		}
		return postgres.New(pool, &postgres.Options{TTL: ttl}), nil
	})
}

// partitions returns how many partitions to inject: n, or 60 where LOCKER_LONG is set.
func partitions(n int) int {
	if os.Getenv("LOCKER_LONG") != "" {
		return 60
	}
	return n
}

// start starts a server that has the tables.
func start(t testing.TB, options ...string) *pgtest.Server {
	t.Helper()
	s := pgtest.Start(t, options...)
	exec(t, s, postgres.Schema())
	return s
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(within(t, time.Minute), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(within(t, time.Minute)) })
	return conn
}

// exec runs statements without arguments.
func exec(t testing.TB, s *pgtest.Server, sql string) {
	t.Helper()
	ctx := within(t, time.Minute)
	conn, err := pgx.Connect(ctx, s.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
}

// query returns the first column of the rows, as text.
func query(t testing.TB, s *pgtest.Server, sql string, args ...any) []string {
	t.Helper()
	ctx := within(t, time.Minute)
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

// open returns a Locker over a pool of its own.
func open(t testing.TB, dsn string) locker.Locker {
	t.Helper()
	return openTTL(t, dsn, ttl)
}

func openTTL(t testing.TB, dsn string, ttl time.Duration) locker.Locker {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	l := postgres.New(pool, &postgres.Options{TTL: ttl})
	t.Cleanup(func() {
		l.(interface{ Close() error }).Close()
		pool.Close()
	})
	return l
}

func lock(t testing.TB, l locker.Locker, name string) locker.Held {
	t.Helper()
	h, err := l.Lock(within(t, time.Minute), name, locker.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func unlock(t testing.TB, h locker.Held) {
	t.Helper()
	if err := h.Unlock(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// suite runs the conformance suite. open makes a Locker that reaches the server through
// the given socket's folder, or its own.
func suite(t *testing.T, s *pgtest.Server, spec string, open func(t testing.TB, dir string, ttl time.Duration) locker.Locker) {
	var all lockers
	lockertest.Run(t, func(t testing.TB) locker.Locker { return all.add(open(t, "", ttl)) }, lockertest.Faults{
		Spec:       spec,
		Partitions: partitions(8),
		Residue: func(t testing.TB) []string {
			return query(t, s, "select name || ' ' || id from flockctx.queue where expires_in > '0'")
		},
		Waiters: func(t testing.TB, name string) int { return all.waiting(name) },
		Break: map[string]func(testing.TB, string){
			"claim deleted": func(t testing.TB, name string) {
				if n := query(t, s, "with gone as (delete from flockctx.claims where name = $1 and granted is not null returning 1) select count(*) from gone", []byte(name)); !slices.Equal(n, []string{"1"}) {
					t.Fatalf("deleted: %v", n)
				}
			},
		},
		Network: func(t testing.TB) (locker.Locker, *lockertest.Proxy) {
			p := lockertest.NewProxy(t, "unix", s.Socket())
			return all.add(open(t, dirOf(p.Addr()), ttl)), p
		},
		Restart: func(testing.TB) { s.Restart() },
	})
}
