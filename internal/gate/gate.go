// Package gate lets the goroutines of one process in to one lock, as a fair
// reader-writer lock does: one writer, or any number of readers. Being inside is leave
// to ask the kernel for the lock, not yet the lock itself; the package knows no file.
//
// Every method but BusyFor is called with the mutex of [Gate.Init] held, and returns
// with it held, but for Enter, Retreat and BeAlone: they release it, since they wait. Who
// is inside leaves by [Gate.Leave], in the mode in which it is inside then. One of those
// inside may close the gate, to wait for another process ([Gate.Close], [Gate.Open]).
//
// Goroutines that come take the gate at once where it is open, also past those that
// wait, until the first of these has waited 1 ms; from then on it is first come, first
// served. A wait ends with the grant, or with one of the two channels that it is
// given; where both come together the channel wins, and the grant is handed on.
package gate

import (
	"errors"
	"io/fs"
	"sync"
	"time"
)

// A Mode says beside whom a goroutine may be inside.
type Mode uint8

const (
	Writer Mode = iota // alone
	Reader             // beside other readers
)

// ErrEnded says that the channel done ended a wait.
var ErrEnded = errors.New("ended")

// ErrUpgrade says that another reader inside waits already to be the writer.
var ErrUpgrade = errors.New("another goroutine holds the lock shared and waits to make it exclusive: unlock one of the two")

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
)

// epoch makes readings of the monotonic clock fit an int64.
var epoch = time.Now()

func nanotime() int64 { return int64(time.Since(epoch)) }

// A Gate is open after Init.
//
//	state of a waiter   who moves it on
//	queued              Leave or another change of the gate: to awake, or to granted
//	awake               itself: to inside where the gate is open, else back to queued
//	                    with a timer that ends with its leave to be overtaken
//	granted             itself: it is inside already
//
// Where the gate would admit the first waiter, that waiter is awake, granted or
// has a timer running, or the gate has one running for it, or a goroutine spins that
// will take the lock or, as it joins the queue, wake that waiter: so none is forgotten.
type Gate struct {
	mu *sync.Mutex // guards all of the gate; no system call is made under it

	writer  bool
	readers int
	closed  bool    // one of those inside waits for another process
	upgrade *waiter // a reader inside, waiting until it is the only one

	head, tail *waiter
	busySince  int64       // since when somebody waits without a break, or BusyFor said so
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

// Init makes g an open gate that mu guards. Gates with the same lane, modulo some small
// number, may disturb each other's spinning, and nothing else.
func (g *Gate) Init(mu *sync.Mutex, lane uint64) {
	*g = Gate{mu: mu, departures: &leaving[lane%uint64(len(leaving))]}
}

// A waiter is a goroutine in front of a gate.
type waiter struct {
	next, prev *waiter
	ready      chan struct{} // capacity 1; a token says: look at your state
	since      int64         // when it came
	mode       Mode
	tag        any
	granted    bool
	awake      bool
	timed      bool
}

func newWaiter(m Mode, tag any) *waiter {
	return &waiter{ready: make(chan struct{}, 1), since: nanotime(), mode: m, tag: tag}
}

func (w *waiter) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// admits reports whether m may go inside now, were there no queue.
func (g *Gate) admits(m Mode) bool {
	return !g.writer && !g.closed && g.upgrade == nil && (m == Reader || g.readers == 0)
}

func (g *Gate) count(m Mode) {
	if m == Writer {
		g.writer = true
	} else {
		g.readers++
	}
}

func (g *Gate) uncount(m Mode) {
	if m == Writer {
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

// overdue reports whether the first waiter must not be overtaken any more.
func (g *Gate) overdue(now int64) bool { return now >= g.due(now) }

// due returns when that begins. A slice cannot end later than it is long: another
// end is of another clock, that of a testing/synctest bubble or of the world outside.
func (g *Gate) due(now int64) int64 {
	due := g.head.since + int64(bargeTime)
	if g.sliceEnd > due && g.sliceEnd-now <= int64(sliceTime) {
		due = g.sliceEnd
	}
	return due
}

// probedLately reports whether a waiter was woken to compete within probeTime.
func (g *Gate) probedLately(now int64) bool {
	d := now - g.lastProbe
	return d >= 0 && d < int64(probeTime)
}

// TryEnter goes inside if that needs no waiting and overtakes nobody that is due.
func (g *Gate) TryEnter(m Mode) bool {
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

// Enter goes inside, waiting as long as done and closed let it. On an error, ErrEnded
// or fs.ErrClosed, the goroutine is not inside. Waiting shows tag, while it waits.
func (g *Gate) Enter(done, closed <-chan struct{}, m Mode, tag any) error {
	if g.TryEnter(m) {
		g.mu.Unlock()
		return nil
	}
	w := newWaiter(m, tag)
	if g.head == nil {
		g.busySince = w.since
	}
	g.pushBack(w)
	g.dispatch(w.since)
	g.mu.Unlock()
	return g.park(done, closed, w)
}

// Retreat goes outside again and waits as Enter does, but at the head of the queue: for
// a reader that may not close the gate.
func (g *Gate) Retreat(done, closed <-chan struct{}, m Mode, tag any) error {
	w := newWaiter(m, tag)
	g.uncount(m)
	g.pushFront(w)
	g.dispatch(w.since)
	g.mu.Unlock()
	return g.park(done, closed, w)
}

func (g *Gate) park(done, closed <-chan struct{}, w *waiter) error {
	var timer *time.Timer
	var expired <-chan time.Time
	for {
		var err error
		select {
		case <-w.ready:
		case <-expired:
		case <-done:
			err = ErrEnded
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
		case w.granted: // the grant came together with the end, and loses
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

// Leave goes outside and lets in whoever is next. It reports whether the lock was
// handed to a waiter, to which the caller should then yield the processor: a lock that
// nobody runs with is lost time for all.
func (g *Gate) Leave(m Mode) (handed bool) {
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

// dispatch restores the invariant of the gate after any change.
func (g *Gate) dispatch(now int64) (handed bool) {
	for g.head != nil && g.admits(g.head.mode) {
		w := g.head
		if w.mode == Reader || g.overdue(now) {
			if w.mode == Writer || g.readers == 0 {
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

// Close closes the gate, for one inside that waits for another process, unless one
// does so already, or a reader inside waits to be alone; it reports whether it did.
func (g *Gate) Close() bool {
	if g.closed || g.upgrade != nil {
		return false
	}
	g.closed = true
	return true
}

// Open undoes Close.
func (g *Gate) Open() {
	g.closed = false
	g.dispatch(nanotime())
}

// BusyFor reports whether somebody has waited in front of the gate for d without a
// break since it last said so. It takes the mutex itself.
func (g *Gate) BusyFor(d time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := nanotime()
	if now-g.busySince < int64(d) {
		return false
	}
	g.busySince = now
	return true
}

func (g *Gate) pushBack(w *waiter) {
	w.prev = g.tail
	if g.tail == nil {
		g.head = w
	} else {
		g.tail.next = w
	}
	g.tail = w
}

func (g *Gate) pushFront(w *waiter) {
	w.next = g.head
	if g.head == nil {
		g.tail = w
	} else {
		g.head.prev = w
	}
	g.head = w
}

func (g *Gate) remove(w *waiter) {
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
