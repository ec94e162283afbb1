//go:build unix

package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/postgres"
)

// TestLockTx holds a name as long as the transaction, against Advisory's.
func TestLockTx(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t)
	l := postgres.Advisory(s.DSN(""), &postgres.AdvisoryOptions{TTL: ttl, Idle: -1})
	ctx := within(t, time.Minute)
	a, b := connect(t, s.DSN("")), connect(t, s.DSN(""))
	tx, err := a.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const name = "a /* name */ of 'mine'"
	if err := postgres.LockTx(ctx, tx, name); err != nil {
		t.Fatal(err)
	}
	if _, err := l.TryLock(ctx, name, locker.Exclusive); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("beside it: %v", err)
	}

	// One that waits is seen by its name, and ends with ctx.
	other, err := b.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wctx, cancel := context.WithCancel(ctx)
	errs := make(chan error)
	go func() { errs <- postgres.LockTx(wctx, other, name) }()
	eventually(t, "a LockTx that waits", func() bool {
		q := query(t, s, "select query from pg_stat_activity where wait_event = 'advisory'")
		return len(q) == 1 && strings.Contains(q[0], "of 'mine'")
	})
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "mine") {
		t.Errorf("after a cancel: %v", err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	unlock(t, lock(t, l, name))
	if err := postgres.LockTx(ctx, tx, ""); err == nil {
		t.Error("an empty name")
	}
}
