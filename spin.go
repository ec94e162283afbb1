package flockctx

import (
	"runtime"
	"sync/atomic"
	"time"
)

// What saves a gate from waking goroutines: one that spins, and a watch.

// departures count who left a gate, or one of others that share the count. Who spins
// reads it all the time: so it is not beside what those inside write, which would then
// cost them a miss of the cache each time.
type departures struct {
	atomic.Uint32
	_ [60]byte
}

// spin waits, on the processor and not long, until the gate opens, and reports
// whether the caller is inside now. g.mu is held, before and after, but not meanwhile.
//
// A short section under a lock is over sooner than a goroutine is parked and woken.
// And one that stays running opens and closes its file on its own processor while
// another has the lock: on 2 cores that doubles the throughput. One that keeps its
// file open has nothing to do meanwhile, and parks: for it, spinning took a quarter
// more CPU time and brought nothing.
func (g *gate) spin(m Mode) bool {
	if g.spinning || g.kernel || g.upgrade != nil || runtime.GOMAXPROCS(0) == 1 {
		return false
	}
	if g.spinRest > 0 {
		g.spinRest--
		return false
	}
	if g.owed > 0 {
		// The lock was just handed to a waiter, perhaps by this goroutine, in whose
		// processor's queue the waiter then is: it would run when the spin is over.
		g.mu.Unlock()
		runtime.Gosched()
		g.mu.Lock()
		if g.tryEnter(m) {
			return true
		}
		if g.spinning || g.kernel || g.upgrade != nil {
			return false
		}
	}
	g.spinning = true
	first := g.departures.Load()
	seen := first
	// Tries are counted, not timed: in a synctest bubble time stands still.
	for tries := spinTries; ; tries-- {
		g.mu.Unlock()
		for tries > 0 && g.departures.Load() == seen {
			nanotime() // to pass the time
			tries--
		}
		// Who left has the mutex for a moment more. Lock would soon park.
		locked := g.mu.TryLock()
		for ; tries > 0 && !locked; tries-- {
			nanotime()
			locked = g.mu.TryLock()
		}
		if !locked {
			g.mu.Lock()
		}
		seen = g.departures.Load()
		entered := g.tryEnter(m)
		if entered || tries <= 0 || g.kernel {
			g.spinning = false
			if entered {
				g.spinFails = 0
			} else if seen == first {
				// Nobody left meanwhile: the sections under the lock are long,
				// or this was an exception.
				if g.spinFails++; g.spinFails > maxSpinFails {
					g.spinRest, g.spinFails = spinPenalty, maxSpinFails
				}
			}
			return entered
		}
	}
}

// A watch wakes the first waiter in place of a release, once it is over.
type watch struct{ timer *time.Timer }

// watched reports whether a watch is under way. An end that is far away is of another
// clock, that of a testing/synctest bubble that has ended, and its timer with it.
func (g *gate) watched(now int64) bool {
	d := g.watchEnd - now
	return g.watch != nil && -int64(bargeTime) < d && d <= int64(watchTime)
}

// startWatch begins a watch, in place of one that is under way. g.mu is held.
//
// A watch is forgotten, or put off, by a field: no timer is touched but by its own
// goroutine, since another one may not, where one of the two is in a bubble.
func (g *gate) startWatch(now int64) {
	w := new(watch)
	g.watch, g.watchEnd = w, now+int64(watchTime)
	w.timer = time.AfterFunc(watchTime, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.watch != w {
			return
		}
		now := nanotime()
		if left := g.watchEnd - now; left > 0 {
			w.timer.Reset(time.Duration(left))
			return
		}
		g.watch = nil
		if g.head != nil {
			g.rush = false
			g.dispatch(now)
		}
	})
}
