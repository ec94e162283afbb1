package flockctx

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Goroutines that poll share some 2 % of a core. What costs is waking up an idle
// process, 0.1 to 0.3 ms with all that the runtime does then: so where several poll, the
// longer intervals end on a grid of pollTick. A poll that goes along with others costs
// some 10 µs (with 10,000 of them their goroutine, timer and file have left the caches
// meanwhile): so each that polls adds pollCost to the interval of all.
const (
	minPoll  = time.Millisecond
	pollCost = 1200 * time.Microsecond
	pollTick = 20 * time.Millisecond
)

// pollers counts the goroutines that poll.
var pollers atomic.Int64

// errHurried: somebody wants a sleep to end before its time.
var errHurried = errors.New("hurried")

// A backoff spaces the tries of one goroutine that polls. It belongs to that
// goroutine alone. Between stop and start the goroutine does not count as polling;
// stop must be called in the end.
type backoff struct {
	next, max time.Duration
	due       int64 // nanotime of the try that a hurried sleep did not wait for, or 0
	timer     *time.Timer
}

func newBackoff(b Backoff) *backoff {
	pollers.Add(1)
	return &backoff{next: b.Min, max: b.Max}
}

func (b *backoff) stop()  { pollers.Add(-1) }
func (b *backoff) start() { pollers.Add(1) }

// hasten begins anew with the intervals of p where a sleep was hurried, and keeps them
// below p's maximum.
func (b *backoff) hasten(p Backoff) {
	if b.due != 0 {
		b.next = p.Min
	}
	b.max = p.Max
	b.next = min(b.next, b.max)
}

// sleep waits until the next try is due and returns nil, or returns errEnded when
// the context of a ends, fs.ErrClosed when closed is closed, or errHurried. The interval
// doubles with each call; jitter of up to a quarter less keeps processes out of step. An
// interval that would reach beyond the deadline ends there, and one that follows a
// hurried one not later than that.
//
// hurried, unless it is nil, is told when the sleep will end, and returns a channel with
// a token for one that is to end at once.
func (b *backoff) sleep(a *attempt, closed <-chan struct{}, hurried func(due int64) <-chan struct{}) error {
	d := b.next
	b.next = min(2*b.next, b.max)
	others := pollers.Load() - 1
	d = max(d, minPoll+time.Duration(others)*pollCost)
	d -= time.Duration(rand.Int64N(int64(d)/4 + 1))
	now := nanotime()
	if others > 0 && d > pollTick {
		d += pollTick - time.Duration(now+int64(d))%pollTick
	}
	if b.due != 0 {
		d = max(0, min(d, time.Duration(b.due-now)))
		b.due = 0
	}
	if !a.deadline.IsZero() {
		d = min(d, max(time.Until(a.deadline), minPoll))
	}
	if b.timer == nil {
		b.timer = time.NewTimer(d)
	} else {
		b.timer.Reset(d)
	}
	var hurry <-chan struct{}
	if hurried != nil {
		hurry = hurried(now + int64(d))
	}
	select {
	case <-b.timer.C:
		return nil
	case <-a.done:
		b.timer.Stop()
		return errEnded
	case <-closed:
		b.timer.Stop()
		return fs.ErrClosed
	case <-hurry:
		b.timer.Stop()
		b.due = now + int64(d)
		return errHurried
	}
}
