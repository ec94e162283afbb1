package lockertest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/locker"
)

// waiters puts 200 goroutines of 4 clients in front of one held lock.
func (s *suite) waiters(t *testing.T) {
	const n = 200
	h := lock(t, s.new(t), "waiters")
	clients := []locker.Locker{s.new(t), s.new(t), s.new(t), s.new(t)}
	var inside, done int
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			h, err := clients[i%len(clients)].Lock(bg(t), "waiters", locker.Exclusive)
			if err != nil {
				t.Error(err)
				return
			}
			if inside++; inside != 1 {
				t.Errorf("%d holders", inside)
			}
			done++
			inside--
			if err := h.Unlock(bg(t)); err != nil {
				t.Error(err)
			}
		})
	}
	s.queued(t, "waiters", n)
	begin := time.Now()
	unlock(t, h)
	wg.Wait()
	took := time.Since(begin)
	if done != n {
		t.Errorf("%d of %d were served", done, n)
	}
	t.Logf("%d waiters served in %v, %v each", n, took.Round(time.Millisecond), (took / n).Round(time.Microsecond))
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
