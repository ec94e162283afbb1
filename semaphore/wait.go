package semaphore

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/flockctx/flockctx"
)

const (
	// settle is the pause after the first look that a bell was the reason of, and that
	// found no slot; see the package's documentation.
	settle = time.Millisecond

	// rest is the pause where no bell rings, the first one. Those that follow grow too:
	// all that they are for is over after it.
	rest    = 2 * time.Second
	maxRest = time.Minute
)

// A pace is how long to pause between looks.
type pace struct {
	next, most time.Duration
	factor     time.Duration
}

// pause returns the next pause, and spreads those of several processes that poll.
func (p *pace) pause() time.Duration {
	d := p.next
	p.next = min(p.factor*p.next, p.most)
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}

// polling is the pace of one that no bell tells.
func polling(b flockctx.Backoff) pace {
	p := pace{b.Min, b.Max, 2}
	if p.next == 0 {
		p.next = time.Millisecond
	}
	if p.most == 0 {
		p.most = 100 * time.Millisecond
	}
	p.next = max(p.next, time.Millisecond)
	p.most = max(p.most, p.next)
	return p
}

// wait takes a slot when one is free, for the one that has the turn.
func (s *semaphore) wait(ctx context.Context, pl *place) (*Permit, error) {
	began := time.Now()
	done := ctx.Done()
	b := s.listen(ctx, done, pl)
	p := polling(s.opts.Poll)
	if b != nil {
		defer b.leave()
		p = pace{rest, maxRest, 8}
	}
	for {
		permit, err := s.look(pl)
		switch {
		case err != nil:
			return nil, err
		case permit != nil:
			return s.accept(ctx, permit, began)
		}
		if err := pl.current(s); err != nil {
			return nil, err
		}
		if b == nil {
			sleep(done, p.pause())
		} else if b.wait(done, p.pause()) {
			p.next = settle
		}
		select {
		case <-done:
			return nil, s.ended(ctx, began)
		default:
		}
	}
}

// sleep sleeps for d, or until done.
func sleep(done <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-done:
	}
}

// accept judges a slot that was waited for, and gives it back where it comes too late,
// or on a file that the path does not name any more.
func (s *semaphore) accept(ctx context.Context, p *Permit, began time.Time) (accepted *Permit, err error) {
	defer func() {
		if accepted == nil { // also where ctx panics
			p.Release()
		}
	}()
	if err := p.place.current(s); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, s.ended(ctx, began)
	}
	return p, nil
}

// ended returns the error for the end of ctx.
func (s *semaphore) ended(ctx context.Context, began time.Time) error {
	busy := &flockctx.BusyError{Path: s.path, Err: context.Canceled}
	if ctx.Err() != nil { // else it is a context that no other is like
		// A context that has ended has this say so, without I/O.
		errors.As(flockctx.New(s.path, nil).Lock(ctx), &busy)
	}
	busy.Waited = time.Since(began)
	return busy
}
