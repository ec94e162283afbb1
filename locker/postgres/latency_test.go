//go:build unix

package postgres_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/flockctx/flockctx/locker/lockertest"
)

// TestLatency logs figures, with LOCKER_LONG those of docs/postgres.md: rows beside two
// UPDATEs, which is what a lock of one's own makes at least. It is not parallel, so that
// little else runs.
func TestLatency(t *testing.T) {
	n := 40
	if os.Getenv("LOCKER_LONG") != "" {
		n = 400
	}
	s := start(t)
	exec(t, s, "create table bare (id int primary key, n int); insert into bare values (1, 0)")
	pool, err := pgxpool.New(context.Background(), s.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	update := func() {
		if _, err := pool.Exec(context.Background(), "update bare set n = n + 1 where id = $1", 1); err != nil {
			t.Error(err)
		}
	}
	a, b := open(t, s.DSN("")), open(t, s.DSN(""))
	rows := func() func() {
		h := lock(t, a, "latency")
		return func() { unlock(t, h) }
	}
	bare := func() func() { update(); return update }
	for range 3 { // in turn: the machine may do other things
		lockertest.Latency(t, "rows", n, rows)
		lockertest.Latency(t, "two bare UPDATEs", n, bare)
	}
	lockertest.HandOver(t, "rows", n/2, 50*time.Millisecond, rows, func() func() {
		h := lock(t, b, "latency")
		return func() { unlock(t, h) }
	})
}
