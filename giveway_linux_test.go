//go:build linux

package flockctx_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
	"golang.org/x/sys/unix"
)

// Goroutines that hand a lock to each other without a break leave it to other processes
// now and then: else those, which the kernel wakes too late, would have nothing.

// gaps has goroutines of a bubble hand the lock on path to each other for so long, and
// returns when another process could have had it in between. Where it can have it, it
// keeps it for hold.
func gaps(t *testing.T, path string, long, hold time.Duration) (at []time.Duration) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	must(t, err)
	defer unix.Close(fd)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				l := flockctx.New(path, &flockctx.Options{Wait: flockctx.WaitPoll, Poll: flockctx.Backoff{Max: 2 * ms}})
				defer l.Close()
				for l.Lock(ctx) == nil {
					time.Sleep(ms)
					must(t, l.Unlock())
				}
			})
		}
		// All others wake at whole multiples of 10 µs, so this one meets a gap in which
		// time passes, and never the moment of a hand-over.
		time.Sleep(7 * time.Microsecond)
		for open := false; ctx.Err() == nil; time.Sleep(20 * time.Microsecond) {
			err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				if !open {
					at = append(at, time.Since(start))
				}
				time.Sleep(hold)
				must(t, unix.Flock(fd, unix.LOCK_UN))
			}
			open = err == nil
		}
		wg.Wait()
	})
	return at
}

func TestGivesWay(t *testing.T) {
	path := tempPath(t)
	// Nobody takes it: first after some 8 ms, and then ever more rarely.
	at := gaps(t, path, time.Second, 0)
	if n := len(at); n < 5 || n > 20 || at[0] < flockctx.GiveWayAfter || at[0] > 2*flockctx.GiveWayAfter {
		t.Errorf("without another process: %v", at)
	}
	// What was learned is forgotten with the last handle on the file.
	if at := gaps(t, path, 100*ms, 0); len(at) == 0 || at[0] > 2*flockctx.GiveWayAfter {
		t.Errorf("anew: %v", at)
	}
	// Another process takes it each time: that often.
	if at := gaps(t, path, time.Second, 100*time.Microsecond); len(at) < 50 {
		t.Errorf("beside another process only %d times a second", len(at))
	}
}

// A process of which one goroutine uses the lock need not give way.
func TestOneGoroutineGivesNoWay(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		l := flockctx.New(path, nil)
		for range 100 {
			must(t, l.Lock(t.Context()))
			time.Sleep(ms)
			must(t, l.Unlock())
		}
		must(t, l.Close())
		if took := time.Since(start); took != 100*ms {
			t.Errorf("a hundred times 1 ms took %v", took)
		}
	})
}
