package flockctx

import (
	"context"
	"io/fs"
	"runtime"
	"sync"
	"time"
)

// How goroutines of this process share a lock. See docs/design.md, "Queue".
const (
	// bargeTime is how long the longest waiter lets running goroutines overtake
	// it. They do so without a switch of goroutines, which is what makes an
	// unfair lock fast. It is the starvation threshold of sync.Mutex.
	bargeTime = time.Millisecond

	// sliceTime is how long a goroutine to which the lock was handed may take it
	// again, and others with it, before the next waiter gets it.
	sliceTime = 150 * time.Microsecond

	// probeTime is the shortest time between two wake-ups of the first waiter
	// to compete for a lock that it may still lose.
	probeTime = 50 * time.Microsecond

	// spinTries is how long one goroutine per file spins before it parks; after
	// maxSpinFails in a row did in vain, spinPenalty of them do not.
	spinTries    = 500 // some 20 µs
	spinPenalty  = 8
	maxSpinFails = 8

	// rushTime is how soon after a release running goroutines must have taken the
	// lock for them to be expected again after the next one. The first waiter is
	// then not woken until its turn, or until watchTime is over without it.
	rushTime  = 20 * time.Microsecond
	watchTime = sliceTime + 100*time.Microsecond

	// A process whose goroutines hand the lock to each other without a break
	// would leave others, which the kernel wakes too late, with nothing. So after
	// minPatience to maxPatience it leaves the lock alone for 1/giveWayShare of
	// that: often where another process takes it then, rarely (and for longer, in
	// case the other one was too slow) where none does.
	minPatience  = 8 * time.Millisecond
	maxPatience  = 128 * time.Millisecond
	giveWayShare = 100
)

// epoch makes readings of the monotonic clock fit an int64.
var epoch = time.Now()

func nanotime() int64 { return int64(time.Since(epoch)) }

// A gate admits goroutines as a fair reader-writer lock does: one writer, or any
// number of readers, first come, first served past bargeTime. The zero value with
// mu set is an open gate.
//
// Being inside is leave to ask the kernel, not yet the lock itself.
//
//	state of a waiter   who moves it on
//	queued              leave or another change of the gate: to awake, or to granted
//	awake               itself: to inside where the gate is open, else back to queued
//	                    with a timer that ends with its leave to be overtaken
//	granted             itself: it is inside already
//
// Where the gate would admit the first waiter, that waiter is awake, granted or
// has a timer running, or the gate has one running for it, or a goroutine spins that
// will take the lock or, as it joins the queue, wake that waiter: so none is forgotten.
type gate struct {
	mu *sync.Mutex // guards all of the gate; no system call is made under it

	writer  bool
	readers int
	kernel  bool    // one of those inside waits for another process
	upgrade *waiter // a reader inside, waiting until it is the only one

	head, tail *waiter
	busySince  int64       // since when somebody waits without a break, or gave way
	spinning   bool        // a goroutine that is not in the queue spins until the gate opens
	spinRest   int         // so many more will not, because one did in vain
	spinFails  int         // in a row
	departures *departures // counted while one spins
	owed       int         // waiters that are inside and do not know it yet
	sliceEnd   int64       // until when the queue may be overtaken
	lastLeave  int64       // when somebody left while others waited
	rush       bool        // the queue was overtaken soon after that
	watch      *watch      // nil where none is under way
	watchEnd   int64       // when it is over
	lastProbe  int64       // when a waiter was last woken to compete
}

// A waiter is a goroutine in front of a gate.
type waiter struct {
	next, prev *waiter
	ready      chan struct{} // capacity 1; a token says: look at your state
	since      int64         // when it came
	mode       Mode
	granted    bool
	awake      bool
	timed      bool
}

func (w *waiter) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// admits reports whether m may go inside now, were there no queue.
func (g *gate) admits(m Mode) bool {
	return !g.writer && !g.kernel && g.upgrade == nil && (m == Shared || g.readers == 0)
}

func (g *gate) count(m Mode) {
	if m == Exclusive {
		g.writer = true
	} else {
		g.readers++
	}
}

// overdue reports whether the first waiter must not be overtaken any more.
func (g *gate) overdue(now int64) bool { return now >= g.due(now) }

// due returns when that begins. A slice cannot end later than it is long: another
// end is of another clock, that of a testing/synctest bubble or of the world outside.
func (g *gate) due(now int64) int64 {
	due := g.head.since + int64(bargeTime)
	if g.sliceEnd > due && g.sliceEnd-now <= int64(sliceTime) {
		due = g.sliceEnd
	}
	return due
}

// probedLately reports whether a waiter was woken to compete within probeTime.
func (g *gate) probedLately(now int64) bool {
	d := now - g.lastProbe
	return d >= 0 && d < int64(probeTime)
}

// tryEnter goes inside if that needs no waiting and overtakes nobody that is due.
// g.mu is held.
func (g *gate) tryEnter(m Mode) bool {
	if !g.admits(m) {
		return false
	}
	if g.head != nil {
		now := nanotime()
		if g.overdue(now) {
			g.dispatch(now)
			return false
		}
		g.rush = now-g.lastLeave < int64(rushTime)
	}
	g.count(m)
	return true
}

// enter goes inside, waiting as long as ctx and closed let it. g.mu is held, and
// released on return. On an error, errEnded or fs.ErrClosed, the
// goroutine is not inside.
func (g *gate) enter(ctx context.Context, closed <-chan struct{}, m Mode) error {
	if g.tryEnter(m) {
		g.mu.Unlock()
		return nil
	}
	w := &waiter{ready: make(chan struct{}, 1), since: nanotime(), mode: m}
	if g.head == nil {
		g.busySince = w.since
	}
	g.pushBack(w)
	g.dispatch(w.since)
	g.mu.Unlock()
	return g.park(ctx, closed, w)
}

// retreat goes outside again and waits at the head of the queue: another reader
// waits for another process already. g.mu is held, and released on return.
func (g *gate) retreat(ctx context.Context, closed <-chan struct{}, m Mode) error {
	w := &waiter{ready: make(chan struct{}, 1), since: nanotime(), mode: m}
	g.uncount(m)
	g.pushFront(w)
	g.dispatch(w.since)
	g.mu.Unlock()
	return g.park(ctx, closed, w)
}

func (g *gate) park(ctx context.Context, closed <-chan struct{}, w *waiter) error {
	var timer *time.Timer
	var expired <-chan time.Time
	done := ctx.Done()
	for {
		var err error
		select {
		case <-w.ready:
		case <-expired:
		case <-done:
			err = errEnded
		case <-closed:
			err = fs.ErrClosed
		}
		g.mu.Lock()
		now := nanotime()
		if w.granted {
			g.owed--
		}
		switch {
		case w.granted && err == nil:
		case w.granted: // the grant came together with the end of ctx, and loses
			g.uncount(w.mode)
			g.dispatch(now)
		case err != nil:
			g.remove(w)
			g.dispatch(now)
		case w == g.head && g.admits(w.mode):
			g.remove(w)
			g.count(w.mode)
			g.dispatch(now)
		default: // woken, but overtaken
			w.awake, w.timed = false, false
			if wait := g.due(now) - now; w == g.head && wait > 0 {
				w.timed = true
				if timer == nil {
					timer = time.NewTimer(time.Duration(wait))
					expired = timer.C
				} else {
					timer.Reset(time.Duration(wait))
				}
			}
			g.mu.Unlock()
			continue
		}
		g.mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
		return err
	}
}

func (g *gate) uncount(m Mode) {
	if m == Exclusive {
		g.writer = false
		return
	}
	g.readers--
	if u := g.upgrade; u != nil && g.readers == 1 {
		g.readers, g.writer, g.upgrade = 0, true, nil
		u.granted = true
		u.wake()
	}
}

// leave goes outside and lets in whoever is next. g.mu is held. It reports whether
// the lock was handed to a waiter, to which the caller should then yield the
// processor.
func (g *gate) leave(m Mode) (handed bool) {
	g.uncount(m)
	if g.spinning {
		g.departures.Add(1)
	}
	if g.head == nil {
		return false
	}
	g.lastLeave = nanotime()
	return g.dispatch(g.lastLeave)
}

// dispatch restores the invariant of the gate after any change. g.mu is held.
func (g *gate) dispatch(now int64) (handed bool) {
	for g.head != nil && g.admits(g.head.mode) {
		w := g.head
		if w.mode == Shared || g.overdue(now) {
			if w.mode == Exclusive || g.readers == 0 {
				g.sliceEnd = now + int64(sliceTime)
			}
			g.remove(w)
			g.count(w.mode)
			w.granted = true
			g.owed++
			if g.watched(now) {
				g.watchEnd = now + int64(watchTime)
			}
			w.wake()
			handed = true
			continue
		}
		// It is told that the lock is free, and running goroutines may still
		// overtake it. But waking it up costs more than a short section under
		// the lock: so where one that spins, or that was here a moment ago, is
		// likely to take the lock, it is left alone for a while.
		switch {
		case g.spinning || w.awake || g.watched(now):
		case w.timed && g.probedLately(now):
		case g.rush:
			g.startWatch(now)
		default:
			w.awake = true
			g.lastProbe = now
			w.wake()
		}
		break
	}
	return handed
}

func (g *gate) pushBack(w *waiter) {
	w.prev = g.tail
	if g.tail == nil {
		g.head = w
	} else {
		g.tail.next = w
	}
	g.tail = w
}

func (g *gate) pushFront(w *waiter) {
	w.next = g.head
	if g.head == nil {
		g.tail = w
	} else {
		g.head.prev = w
	}
	g.head = w
}

func (g *gate) remove(w *waiter) {
	if w.prev == nil {
		g.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		g.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
}

// beAlone turns the reader that calls it into the writer, once the other readers
// inside have left; nobody else is let in meanwhile. g.mu is held, and released on
// return. On an error it is still a reader. Two readers that wait for each other
// to leave would do so until a context ends: the second one gets errUpgrade.
func (g *gate) beAlone(ctx context.Context, closed <-chan struct{}) error {
	if g.upgrade != nil {
		g.mu.Unlock()
		return errUpgrade
	}
	if g.readers == 1 {
		g.readers, g.writer = 0, true
		g.mu.Unlock()
		return nil
	}
	w := &waiter{ready: make(chan struct{}, 1)}
	g.upgrade = w
	g.mu.Unlock()
	var err error
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		err = errEnded
	case <-closed:
		err = fs.ErrClosed
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.granted { // alone, but too late
		g.writer, g.readers = false, 1
	} else {
		g.upgrade = nil
	}
	g.dispatch(nanotime())
	return err
}

// share turns the writer that calls it into a reader. g.mu is held.
func (g *gate) share() {
	g.writer, g.readers = false, g.readers+1
	g.dispatch(nanotime())
}

// yieldAfter gives the processor to the goroutine to which the lock was just
// handed: a lock that nobody runs with is lost time for all.
func yieldAfter(handed bool) {
	if handed {
		runtime.Gosched()
	}
}
