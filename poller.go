package flockctx

import (
	"context"
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

// A backoff spaces the tries of one goroutine that polls. It belongs to that
// goroutine alone. Between stop and start the goroutine does not count as polling;
// stop must be called in the end.
type backoff struct {
	next, max time.Duration
	timer     *time.Timer
}

func newBackoff(b Backoff) *backoff {
	pollers.Add(1)
	return &backoff{next: b.Min, max: b.Max}
}

func (b *backoff) stop()  { pollers.Add(-1) }
func (b *backoff) start() { pollers.Add(1) }

// sleep waits until the next try is due and returns nil, or returns errEnded when
// ctx ends or fs.ErrClosed when closed is closed. The interval doubles with each
// call; jitter of up to a quarter less keeps processes out of step. An interval
// that would reach beyond ctx's deadline ends there.
func (b *backoff) sleep(ctx context.Context, closed <-chan struct{}) error {
	d := b.next
	b.next = min(2*b.next, b.max)
	others := pollers.Load() - 1
	d = max(d, minPoll+time.Duration(others)*pollCost)
	d -= time.Duration(rand.Int64N(int64(d)/4 + 1))
	if others > 0 && d > pollTick {
		d += pollTick - time.Duration(nanotime()+int64(d))%pollTick
	}
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, max(time.Until(deadline), minPoll))
	}
	if b.timer == nil {
		b.timer = time.NewTimer(d)
	} else {
		b.timer.Reset(d)
	}
	select {
	case <-b.timer.C:
		return nil
	case <-ctx.Done():
		b.timer.Stop()
		return errEnded
	case <-closed:
		b.timer.Stop()
		return fs.ErrClosed
	}
}
