package lockertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
)

// waiters puts 200 goroutines of 4 clients in front of one held lock. With short TTLs a
// busy machine may not keep all of them alive: a place that is lost is taken anew, and
// only a lock that was held to the end counts.
func (s *suite) waiters(t *testing.T) {
	const n = 200
	h := lock(t, s.new(t), "waiters")
	clients := []locker.Locker{s.new(t), s.new(t), s.new(t), s.new(t)}
	var inside, done int
	var lost atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ctx := bg(t)
			for {
				h, err := clients[i%len(clients)].Lock(ctx, "waiters", locker.Exclusive)
				if err == nil {
					if inside++; inside != 1 {
						t.Errorf("%d holders", inside)
					}
					done++
					inside--
					err = h.Unlock(ctx)
				}
				switch {
				case err == nil:
					return
				case !s.traits.CanLose || !errors.Is(err, locker.ErrLost):
					t.Error(err)
					return
				}
				lost.Add(1)
			}
		})
	}
	s.queued(t, "waiters", n)
	begin := time.Now()
	if err := h.Unlock(bg(t)); err != nil && !errors.Is(err, locker.ErrLost) {
		t.Error(err)
	}
	wg.Wait()
	took := time.Since(begin)
	if done < n {
		t.Errorf("%d of %d were served", done, n)
	}
	t.Logf("%d waiters served in %v, %v each, %d were lost and tried again", n, took.Round(time.Millisecond), (took / n).Round(time.Microsecond), lost.Load())
}

// Latency logs how long lock takes together with the unlock it returns, n times on a
// free lock.
func Latency(t testing.TB, what string, n int, lock func() (unlock func())) {
	t.Helper()
	var all []time.Duration
	for range n {
		begin := time.Now()
		lock()()
		all = append(all, time.Since(begin))
	}
	report(t, what+": lock and unlock", all)
}

// HandOver logs the time from the call of one client's unlock to the return of another
// one's lock, which has waited for some pause, n times. The clients take turns.
func HandOver(t testing.TB, what string, n int, pause time.Duration, a, b func() (unlock func())) {
	t.Helper()
	var all []time.Duration
	unlock := a()
	for i := range n {
		next := []func() func(){b, a}[i%2]
		granted := make(chan time.Time)
		var other func()
		go func() {
			other = next()
			granted <- time.Now()
		}()
		time.Sleep(pause)
		begin := time.Now()
		unlock()
		all = append(all, (<-granted).Sub(begin))
		unlock = other
	}
	unlock()
	report(t, fmt.Sprintf("%s: hand-over after %v", what, pause), all)
}

func report(t testing.TB, what string, all []time.Duration) {
	t.Helper()
	slices.Sort(all)
	at := func(q float64) time.Duration {
		return all[int(q*float64(len(all)-1))].Round(time.Microsecond)
	}
	t.Logf("%-70s median %8v, 99th percentile %8v, of %d", what, at(0.5), at(0.99), len(all))
}
