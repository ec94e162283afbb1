//go:build unix

package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
)

// either returns how to connect to the primary of the two, whichever it is.
func either(a, b *pgtest.Server) string {
	return fmt.Sprintf("host=%s,%s port=%d,%d user=postgres dbname=postgres target_session_attrs=read-write connect_timeout=2", a.Dir(), b.Dir(), a.Port(), b.Port())
}

// streaming waits until the replica has all that is in s.
func streaming(t *testing.T, s *pgtest.Server) {
	t.Helper()
	eventually(t, "the replica streams", func() bool {
		got := query(t, s, "select replay_lsn >= pg_current_wal_lsn() from pg_stat_replication")
		return len(got) == 1 && got[0] == "true"
	})
}

// TestPromotion: the primary dies under a lock, and its synchronous replica takes over.
// The lock goes on.
func TestPromotion(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := a.Standby(t)
	streaming(t, a)
	exec(t, a, "alter system set synchronous_standby_names = 'standby'; ")
	exec(t, a, "select pg_reload_conf()")
	dsn := either(a, b)
	const ttl = 10 * time.Second // long enough for a failover
	l, other := openTTL(t, dsn, ttl), openTTL(t, dsn, ttl)
	h := lock(t, l, "promotion")
	token, _ := h.Token()
	granted := make(chan locker.Held, 1)
	go func() {
		next, err := other.Lock(within(t, time.Minute), "promotion", locker.Exclusive)
		if err != nil {
			t.Error(err)
		}
		granted <- next
	}()
	a.Kill()
	b.Promote()
	begin := time.Now()
	select {
	case <-h.Context().Done():
		t.Fatalf("the lock: %v", context.Cause(h.Context()))
	case next := <-granted:
		t.Fatalf("another one was let in: %v", next)
	case <-time.After(ttl + time.Second):
	}
	t.Logf("held %v after the promotion", time.Since(begin))
	unlock(t, h)
	next := <-granted
	if next == nil {
		return
	}
	if later, _ := next.Token(); later.N <= token.N || later.Epoch != token.Epoch {
		t.Errorf("%v after %v", later, token)
	}
	unlock(t, next)
}

// TestLaggingReplica is what docs/postgres.md warns of: the grant had not reached the
// replica that is promoted. There are two holders until the first one's next renewal;
// the second one has the higher token.
func TestLaggingReplica(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := a.Standby(t)
	streaming(t, a)
	dsn := either(a, b)
	const ttl = 10 * time.Second
	l, other := openTTL(t, dsn, ttl), openTTL(t, dsn, ttl)
	unlock(t, lock(t, l, "lag"))
	streaming(t, a)
	b.Kill()
	h := lock(t, l, "lag")
	token, _ := h.Token()
	a.Kill()
	b.Run()
	b.Promote()
	next := lock(t, other, "lag")
	later, _ := next.Token()
	if later.N <= token.N || later.Epoch != token.Epoch {
		t.Errorf("%v after %v", later, token)
	}
	begin := time.Now()
	select {
	case <-h.Context().Done():
		t.Logf("two held it for %v", time.Since(begin))
	case <-time.After(ttl):
		t.Error("the first holder still believes in its lock")
	}
	if err := h.Unlock(within(t, time.Minute)); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock: %v", err)
	}
	unlock(t, next)
}

// TestAsynchronousCommit: a crash undoes what was committed with synchronous_commit off,
// and keeps a grant all the same.
func TestAsynchronousCommit(t *testing.T) {
	t.Parallel()
	s := start(t, "synchronous_commit=off", "wal_writer_delay=10s")
	exec(t, s, "create table control (n int); checkpoint")
	h := lock(t, openTTL(t, s.DSN(""), time.Minute), "async")
	exec(t, s, "insert into control values (1)")
	s.Restart()
	if got := query(t, s, "select count(*) from control")[0]; got != "0" {
		t.Errorf("the control was kept: the crash undoes nothing")
	}
	if _, err := open(t, s.DSN("")).TryLock(within(t, time.Minute), "async", locker.Exclusive); !errors.Is(err, flockctx.ErrLocked) {
		t.Errorf("after the crash: %v", err)
	}
	unlock(t, h)
}
