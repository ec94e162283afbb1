package gate

import "time"

const (
	// rushTime is how soon after a release running goroutines must have taken the
	// lock for them to be expected again after the next one. The first waiter is
	// then not woken until its turn, or until watchTime is over without it.
	rushTime  = 20 * time.Microsecond
	watchTime = sliceTime + 100*time.Microsecond
)

// A watch wakes the first waiter in place of a release, once it is over.
type watch struct{ timer *time.Timer }

// watched reports whether a watch is under way. An end that is far away is of another
// clock, that of a testing/synctest bubble that has ended, and its timer with it.
func (g *Gate) watched(now int64) bool {
	d := g.watchEnd - now
	return g.watch != nil && -int64(bargeTime) < d && d <= int64(watchTime)
}

// startWatch begins a watch, in place of one that is under way.
//
// A watch is forgotten, or put off, by a field: no timer is touched but by its own
// goroutine, since another one may not, where one of the two is in a bubble.
func (g *Gate) startWatch(now int64) {
	w := new(watch)
	g.watch, g.watchEnd = w, now+int64(watchTime)
	mu := g.mu // Init may write g for its next use before the mutex is held here
	w.timer = time.AfterFunc(watchTime, func() {
		mu.Lock()
		defer mu.Unlock()
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
