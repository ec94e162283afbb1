package locker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Pauses before a new campaign: the first, and the longest that they grow to.
const (
	minPause = 50 * time.Millisecond
	maxPause = time.Second
)

// Lead runs fn while this process is the leader for name, which is to hold its lock
// exclusively. The context that fn gets is as for [Do], and ends with the leadership;
// [HeldFrom] returns the lock, whose token tells a resource which leader came later.
//
// If the lock is lost while fn runs, fn's answer does not count: when it has returned,
// Lead campaigns again, and calls fn again once this process leads. So fn must return
// soon after its context ends. Lead also campaigns again where no server answers
// ([ErrUnavailable]) or a place in the queue is lost, with pauses that grow to a second.
//
// Lead ends with ctx, or when fn returns while it leads: it gives the lock back, and
// returns what [Do] would. If ctx ends outside of fn, the error matches ctx.Err() and
// [context.Cause](ctx). Any other error of Lock ends it too: a wrong name, a mode or
// server that cannot lock, credentials that are refused. A nil fn panics before anything
// is locked.
func Lead(ctx context.Context, l Locker, name string, fn func(context.Context) error) error {
	if fn == nil {
		panic("locker: Lead with a nil function")
	}
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		h, err := l.Lock(ctx, name, Exclusive)
		if err == nil {
			begin := time.Now()
			var lost bool
			lost, err = under(ctx, l, h, fn)
			if !lost || ctx.Err() != nil {
				return err
			}
			if time.Since(begin) > maxPause {
				pause = minPause
			}
		} else if ctx.Err() != nil || !errors.Is(err, ErrLost) && !errors.Is(err, ErrUnavailable) {
			return err
		}
		// Not all at once: what ended one leadership has ended the others' waits.
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done(): // Lock says so
		}
	}
}
