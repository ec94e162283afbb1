//go:build unix

package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres"
)

const ttl = 5 * time.Second

func TestMain(m *testing.M) {
	lockertest.Main(m, func(dsn string) (locker.Locker, error) {
		l, _, err := dial(dsn, ttl)
		return l, err
	})
}

// partitions returns how many partitions to inject: n, or 60 where LOCKER_LONG is set.
func partitions(n int) int {
	if os.Getenv("LOCKER_LONG") != "" {
		return 60
	}
	return n
}

// leaders returns how many changes of leader to bring about: as the suite likes, or 100.
func leaders() int {
	if os.Getenv("LOCKER_LONG") != "" {
		return 100
	}
	return 0
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

// dial returns a Locker over a pool of its own, or over a *sql.DB if the DSN begins with
// "sql ".
func dial(dsn string, ttl time.Duration) (l locker.Locker, done func(), err error) {
	opts := &postgres.Options{TTL: ttl}
	if dsn, ok := strings.CutPrefix(dsn, "sql "); ok {
		db, err := sql.Open("pgx", dsn)
		if err != nil {
			return nil, nil, err
		}
		return postgres.NewSQL(db, opts), func() { db.Close() }, nil
	}
	pool, err := pgxpool.New(context.Background(), dsn)
	if err != nil {
		return nil, nil, err
	}
	return postgres.New(pool, opts), pool.Close, nil
}

// open returns a Locker that is closed, with its pool, at the end of the test.
func open(t testing.TB, dsn string) locker.Locker {
	t.Helper()
	return openTTL(t, dsn, ttl)
}

func openTTL(t testing.TB, dsn string, ttl time.Duration) locker.Locker {
	t.Helper()
	l, done, err := dial(dsn, ttl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
		done()
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

// dirOf returns the folder of a proxy's socket.
func dirOf(p *lockertest.Proxy) string { return filepath.Dir(p.Addr()) }
