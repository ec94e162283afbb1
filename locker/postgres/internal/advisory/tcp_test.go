//go:build unix

package advisory_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/lockertest"
	"github.com/flockctx/flockctx/locker/postgres/internal/advisory"
)

// TestPartitionsOverTCP cuts off holders whose server's kernel keeps watch, too: it must
// not give up a holder before the holder does. TTLs that are no multiple of 3 s are the
// ones to look at, since the kernel counts in whole seconds.
func TestPartitionsOverTCP(t *testing.T) {
	t.Parallel()
	if !lockertest.CanCut {
		t.Skip("SKIP: packets cannot be dropped here")
	}
	// What an administrator has set for all must not count.
	s := pgtest.Start(t, "tcp_user_timeout=500", "tcp_keepalives_idle=1", "tcp_keepalives_interval=1", "tcp_keepalives_count=1")
	for _, ttl := range []time.Duration{2 * time.Second, 5 * time.Second} {
		t.Run(ttl.String(), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var all []lockertest.Overlap
			var wg sync.WaitGroup
			for i := range partitions(4) {
				wg.Go(func() {
					p := lockertest.NewProxy(t, "tcp", s.Addr())
					name := ttl.String() + string(rune('a'+i))
					o := lockertest.Partition(t, func() { p.Swallow([]lockertest.Direction{lockertest.Cut, lockertest.Both}[i%2]) }, func() <-chan struct{} {
						return lock(t, advisory.New(s.TCP(p.Addr()), &advisory.Options{TTL: ttl}), name).Context().Done()
					}, func() {
						unlock(t, lock(t, advisory.New(s.TCP(s.Addr()), &advisory.Options{TTL: ttl}), name))
					})
					mu.Lock()
					all = append(all, o)
					mu.Unlock()
				})
			}
			wg.Wait()
			if n := lockertest.Report(t, "over TCP, TTL "+ttl.String(), all); n > 0 {
				t.Errorf("%d of %d partitions had two holders", n, len(all))
			}
		})
	}
}

// TestDeadHost: a Lock that has no deadline takes a session that was idle when its
// server's host died. TCP would send the query again and again for a quarter of an hour.
func TestDeadHost(t *testing.T) {
	t.Parallel()
	if !lockertest.CanCut {
		t.Skip("SKIP: packets cannot be dropped here")
	}
	s := pgtest.Start(t)
	p := lockertest.NewProxy(t, "tcp", s.Addr())
	l := advisory.New(s.TCP(p.Addr()), &advisory.Options{TTL: ttl})
	unlock(t, lock(t, l, "dead"))
	p.Swallow(lockertest.Cut)
	begin := time.Now()
	ctx := within(t, time.Minute)
	_, err := l.Lock(ctx, "dead", locker.Exclusive)
	t.Logf("after %v: %v", time.Since(begin), err)
	if err == nil || ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock of a dead host: %v", err)
	}
}
