package flockctx_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flockctx/flockctx"
)

// Waiting by polling, in the exact time of a bubble.

const ms = time.Millisecond

// The interval doubles from Min to Max, with jitter of up to a quarter less, and the
// last one ends at the deadline.
func TestBackoffIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b := flockctx.NewBackoff(flockctx.Backoff{Min: 2 * ms, Max: 100 * ms})
		defer b.Stop()
		start := time.Now()
		jitter := false
		for i, want := range []time.Duration{2, 4, 8, 16, 32, 64, 100, 100, 100, 100, 100, 100} {
			want *= ms
			before := time.Now()
			must(t, b.Sleep(ctx, nil))
			if got := time.Since(before); got > want || got < want*3/4 {
				t.Errorf("interval %d is %v, want %v or up to a quarter less", i, got, want)
			} else if got != want {
				jitter = true
			}
		}
		if !jitter {
			t.Error("no jitter")
		}
		for err := error(nil); err == nil; {
			err = b.Sleep(ctx, nil)
		}
		if got := time.Since(start); got != time.Second {
			t.Errorf("the end of the context came after %v, want 1s", got)
		}
	})
}

// A trap: a deadline that fires one poll interval early or late.
func TestDeadlineIsExact(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		for _, limit := range []time.Duration{1, ms, 37 * ms, 250 * ms, 10 * time.Second} {
			path := tempPath(t)
			if foreign {
				startHolder(t, path, flockctx.Options{})
			}
			synctest.Test(t, func(t *testing.T) {
				if !foreign {
					l, err := flockctx.Lock(t.Context(), path, nil)
					must(t, err)
					defer l.Close()
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				start := time.Now()
				_, err := flockctx.Lock(ctx, path, &flockctx.Options{Wait: flockctx.WaitPoll})
				took := time.Since(start)
				busy, ok := errors.AsType[*flockctx.BusyError](err)
				if !ok || !busy.Timeout() {
					t.Fatalf("%v", err)
				}
				if took != limit || busy.Waited != limit {
					t.Errorf("foreign %v: a deadline of %v came after %v, and the error says %v", foreign, limit, took, busy.Waited)
				}
			})
		}
	}
}

// A cancel ends a poll at once, and so does Close.
func TestCancelOfAPollIsExact(t *testing.T) {
	for _, close := range []bool{false, true} {
		path := tempPath(t)
		startHolder(t, path, flockctx.Options{})
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l := flockctx.New(path, &flockctx.Options{Wait: flockctx.WaitPoll, Poll: flockctx.Backoff{Min: time.Hour}})
			want := context.Canceled
			time.AfterFunc(7777*ms, func() {
				if close {
					must(t, l.Close())
				} else {
					cancel()
				}
			})
			if close {
				want = fs.ErrClosed
			}
			start := time.Now()
			wantErr(t, l.Lock(ctx), want)
			if got := time.Since(start); got != 7777*ms {
				t.Errorf("returned after %v", got)
			}
			l.Close()
		})
	}
}

// A poll gets the lock within one interval, and an interval is no longer than Max.
func TestPollFindsAFreeLock(t *testing.T) {
	path := tempPath(t)
	holder := startHolder(t, path, flockctx.Options{})
	synctest.Test(t, func(t *testing.T) {
		time.AfterFunc(3*time.Second+ms/2, func() { holder.must("unlock") })
		start := time.Now()
		l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Wait: flockctx.WaitPoll})
		must(t, err)
		defer l.Close()
		if got := time.Since(start); got < 3*time.Second || got > 3*time.Second+101*ms {
			t.Errorf("a lock that was free after 3s came after %v", got)
		}
	})
}

// Goroutines of one bubble wait for each other, and its clock goes on.
func TestQueueInABubble(t *testing.T) {
	path := tempPath(t)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var done []<-chan error
		for range 5 {
			done = append(done, async(func() error {
				return flockctx.Do(t.Context(), path, &flockctx.Options{Wait: flockctx.WaitPoll}, func(*flockctx.Flock) error {
					time.Sleep(time.Minute)
					return nil
				})
			}))
		}
		for _, ch := range done {
			must(t, <-ch)
		}
		if got := time.Since(start); got < 5*time.Minute || got > 5*time.Minute+10*ms { // it gives way to other processes
			t.Errorf("five minutes one after the other took %v", got)
		}
	})
}

// A bubble's clock leaves nothing behind in the queue of a file that goroutines
// outside use as well.
func TestBubbleLeavesTheQueueAlone(t *testing.T) {
	path := tempPath(t)
	outside := newHandle(t, path, nil)
	must(t, outside.Lock(t.Context()))
	must(t, outside.Unlock()) // the file stays open
	synctest.Test(t, func(t *testing.T) {
		var done []<-chan error
		for range 4 {
			done = append(done, async(func() error {
				return flockctx.Do(t.Context(), path, nil, func(*flockctx.Flock) error { time.Sleep(2 * ms); return nil })
			}))
		}
		for _, ch := range done {
			must(t, <-ch)
		}
	})
	for range 20 {
		must(t, outside.Lock(t.Context()))
		leave := make(chan struct{})
		done := async(func() error {
			return flockctx.Do(t.Context(), path, nil, func(*flockctx.Flock) error { <-leave; return nil })
		})
		eventually(t, "one waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
		time.Sleep(2 * ms) // so that it must not be overtaken any more
		must(t, outside.Unlock())
		if _, err := flockctx.TryLock(path, nil); err == nil {
			t.Fatal("overtook a goroutine that had waited for 2ms")
		}
		close(leave)
		must(t, soon(t, done, "a waiter after the bubble"))
	}
}

// contendInABubble has goroutines of a bubble contend for path until the queue leaves
// its first waiter alone for a while, since running goroutines overtake it: for that
// it has a timer. Then the bubble ends, and its clock stands still. With forget it leaves
// the handle unlocked, with the file open; else it closes it, as only the bubble may.
func contendInABubble(t *testing.T, path string, forget bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := flockctx.New(path, nil)
		overtake := func() {
			must(t, l.Unlock())
			must(t, l.Lock(t.Context()))
		}
		must(t, l.Lock(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		waiting := async(func() error {
			w, err := flockctx.Lock(ctx, path, nil)
			if err != nil {
				return err
			}
			return w.Close() // it was faster than those who should have overtaken it
		})
		synctest.Wait()
		overtake() // the waiter is woken in vain
		synctest.Wait()
		time.Sleep(100 * time.Microsecond) // until it might be woken again
		overtake()
		cancel()
		if err := <-waiting; err != nil {
			wantErr(t, err, context.Canceled)
		}
		must(t, l.Unlock())
		if !forget {
			must(t, l.Close())
		}
	})
}

// What a bubble leaves in a queue that lives on outside is of no harm there, where its
// timers never fire and must not be touched.
func TestContentionAfterABubble(t *testing.T) {
	for _, wait := range []time.Duration{0, 2 * ms} {
		path := tempPath(t)
		outside := newHandle(t, path, nil)
		must(t, outside.Lock(t.Context()))
		must(t, outside.Unlock()) // the file stays open
		contendInABubble(t, path, false)
		for range 20 {
			must(t, outside.Lock(t.Context()))
			done := async(func() error {
				return flockctx.Do(t.Context(), path, nil, func(*flockctx.Flock) error { return nil })
			})
			eventually(t, "one waits", func() bool { return flockctx.Waiters(path, flockctx.BSD) == 1 })
			time.Sleep(wait) // 2 ms: so that it must not be overtaken any more
			must(t, outside.Unlock())
			must(t, soon(t, done, "a waiter after the bubble"))
		}
	}
}

// The cleanup of a forgotten handle runs outside of the bubble that it was of.
func TestForgottenHandleOfABubble(t *testing.T) {
	collect() // what other tests forgot, and could hide that something is left
	queues, descriptors := flockctx.Queues(), countDescriptors()
	for range 5 {
		contendInABubble(t, tempPath(t), true)
	}
	eventually(t, "the descriptors are given back", func() bool {
		runtime.GC()
		return flockctx.Queues() <= queues && countDescriptors() <= descriptors
	})
}

// A trap: a fixed delay wakes late, a delay of 0 burns a core.
func TestIntervalsHaveBounds(t *testing.T) {
	for _, poll := range []flockctx.Backoff{{Min: 1}, {Min: 1, Max: 1}, {Max: 1}, {Min: ms, Max: -1}} {
		synctest.Test(t, func(t *testing.T) {
			b := flockctx.NewBackoff(poll)
			defer b.Stop()
			start := time.Now()
			for range 1000 {
				must(t, b.Sleep(t.Context(), nil))
			}
			// One poll in 750 µs takes some 5 % of a core.
			if got := time.Since(start) / 1000; got < 750*time.Microsecond || got > 100*ms {
				t.Errorf("%+v: an interval of %v", poll, got)
			}
		})
	}
}

// What costs is waking up an idle process: several goroutines that poll do it together.
func TestPollersWakeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const goroutines, seconds = 10, 20
		ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
		defer cancel()
		wakes := make([]map[time.Time]bool, goroutines)
		var wg sync.WaitGroup
		for i := range wakes {
			wakes[i] = map[time.Time]bool{}
			wg.Go(func() {
				b := flockctx.NewBackoff(flockctx.Backoff{Min: 30 * ms, Max: 100 * ms})
				defer b.Stop()
				for b.Sleep(ctx, nil) == nil {
					wakes[i][time.Now()] = true
				}
			})
		}
		wg.Wait()
		all := map[time.Time]bool{}
		for i, w := range wakes {
			if n := len(w) / seconds; n < 7 || n > 20 {
				t.Errorf("goroutine %d polled %d times a second", i, n)
			}
			maps.Copy(all, w)
		}
		if n := len(all) / seconds; n > 52 {
			t.Errorf("%d goroutines woke the process %d times a second", goroutines, n)
		}
	})
}

// Thousands that poll share 2 % of a core.
func TestPollersStretchTheirIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := flockctx.NewBackoff(flockctx.Backoff{Min: ms, Max: ms})
		defer b.Stop()
		for range 4999 {
			defer flockctx.NewBackoff(flockctx.Backoff{}).Stop()
		}
		start := time.Now()
		for range 100 {
			must(t, b.Sleep(t.Context(), nil))
		}
		each := time.Since(start) / 100
		if perSecond := 5000 * time.Second / each; perSecond > 1050 {
			t.Errorf("5000 goroutines poll every %v: %d times a second in all", each, perSecond)
		}
		// A deadline and a cancel are as exact as ever.
		ctx, cancel := context.WithTimeout(t.Context(), 7*ms)
		defer cancel()
		start = time.Now()
		for err := error(nil); err == nil; {
			err = b.Sleep(ctx, nil)
		}
		if got := time.Since(start); got != 7*ms {
			t.Errorf("a deadline of 7ms came after %v", got)
		}
	})
}
