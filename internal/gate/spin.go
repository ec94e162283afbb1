package gate

import (
	"runtime"
	"sync/atomic"
)

const (
	// spinTries is how long one goroutine per gate spins before it parks; after
	// maxSpinFails in a row did in vain, spinPenalty of them do not.
	spinTries    = 500 // some 20 µs
	spinPenalty  = 8
	maxSpinFails = 8
)

// departures count who left a gate, or one of others that share the count. Who spins
// reads it all the time: so it is not beside what those inside write, which would then
// cost them a miss of the cache each time.
type departures struct {
	atomic.Uint32
	_ [60]byte
}

// leaving are the counts, for all gates.
var leaving [16]departures

// Spin waits, on the processor and not long, until the gate opens, and reports
// whether the caller is inside now. The mutex is not held meanwhile.
//
// A short section under a lock is over sooner than a goroutine is parked and woken.
// And one that stays running opens and closes its file on its own processor while
// another has the lock: on 2 cores that doubles the throughput. One that keeps its
// file open has nothing to do meanwhile, and parks: for it, spinning took a quarter
// more CPU time and brought nothing.
func (g *Gate) Spin(m Mode) bool {
	if g.spinning || g.closed || g.upgrade != nil || runtime.GOMAXPROCS(0) == 1 {
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
		if g.TryEnter(m) {
			return true
		}
		if g.spinning || g.closed || g.upgrade != nil {
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
		entered := g.TryEnter(m)
		if entered || tries <= 0 || g.closed {
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
