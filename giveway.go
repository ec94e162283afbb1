package flockctx

import "time"

// A process whose goroutines hand the lock to each other without a break would leave
// others, which the kernel wakes too late, with nothing. So after minPatience to
// maxPatience it leaves the lock alone for 1/giveWayShare of that: often where another
// process takes it then, rarely (and for longer, in case the other one was too slow)
// where none does.
const (
	minPatience  = 8 * time.Millisecond
	maxPatience  = 128 * time.Millisecond
	giveWayShare = 100
)

// giveWay leaves the lock to other processes for a moment, if this one has kept it
// long enough, and reports whether it did.
func (l *Flock) giveWay(a *attempt) bool {
	l.q.lock()
	patience := max(l.q.patience, int64(minPatience))
	l.q.unlock()
	if !a.gate.BusyFor(time.Duration(patience)) {
		return false
	}
	timer := time.NewTimer(time.Duration(patience / giveWayShare))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.done:
	case <-l.closedFor(a):
	}
	return true
}

// adjustPatience sets when to give way next, after another process took the lock or did
// not.
func (q *queue) adjustPatience(taken bool) {
	q.lock()
	defer q.unlock()
	if taken {
		q.patience = int64(minPatience)
	} else {
		q.patience = min(2*max(q.patience, int64(minPatience)), int64(maxPatience))
	}
}
