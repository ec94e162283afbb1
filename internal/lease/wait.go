package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/locker"
)

// Patience is how long a call without a deadline tries to reach a server.
const Patience = 10 * time.Second

// Reach returns ctx with the time that a call has to be taken in by a server: until ctx
// ends or, where that has no deadline, Patience. The cause is then
// [locker.ErrUnavailable].
func Reach(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, Patience, locker.ErrUnavailable)
}

// Unavailable returns an error that says why and matches [locker.ErrUnavailable], but not
// what why matches: the end of a context that is not the caller's.
func Unavailable(why error) error {
	if errors.Is(why, locker.ErrUnavailable) {
		return why
	}
	return fmt.Errorf("%w: %v", locker.ErrUnavailable, why)
}

// A Call is one Lock or TryLock.
type Call struct {
	Engine string
	Name   string
	Mode   locker.Mode
	began  time.Time
}

// Begin returns the call, or the error for a ctx that is done or a bad name or mode.
func Begin(ctx context.Context, engine, name string, m locker.Mode) (*Call, error) {
	c := &Call{Engine: engine, Name: name, Mode: m}
	err := locker.CheckName(name)
	if err != nil {
		c.Name = name[:min(len(name), 64)] // an error is no place for all of it
	}
	if ctx.Err() != nil {
		return nil, c.Ended(ctx, nil)
	}
	if err != nil {
		return nil, c.Failed(err)
	}
	if m != locker.Exclusive && m != locker.Shared {
		return nil, c.Failed(fmt.Errorf("mode %v: %w", m, errors.ErrUnsupported))
	}
	c.began = time.Now()
	return c, nil
}

// String names the call in errors.
func (c *Call) String() string { return fmt.Sprintf("%s: lock %q", c.Engine, c.Name) }

// Failed returns the error of a call that failed for another reason than its ctx.
func (c *Call) Failed(err error) error { return fmt.Errorf("%v: %w", c, err) }

// Busy returns the error of a TryLock that found the lock taken.
func (c *Call) Busy() error { return c.busy(flockctx.ErrLocked) }

// Ended returns the error of a call whose ctx is done. why, if not nil, says why no
// server has taken it in: what it was waiting for other than the lock's holder.
func (c *Call) Ended(ctx context.Context, why error) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); cause != err {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if why != nil {
		err = fmt.Errorf("%w (%w)", err, Unavailable(why))
	}
	return c.busy(err)
}

func (c *Call) busy(err error) error {
	b := &flockctx.BusyError{Path: c.Engine + ":" + c.Name, Mode: c.Mode, Err: err}
	if !c.began.IsZero() {
		b.Waited = time.Since(c.began)
	}
	return b
}

// An Answer is the result of a release: made once, given to every caller.
type Answer struct {
	mu   sync.Mutex // guards done
	done chan struct{}
	err  error // valid once done is closed
}

// Once returns what the first call's release returned. A later caller whose ctx ends
// before that gets unsure.
func (a *Answer) Once(ctx context.Context, release func() error, unsure func(error) error) error {
	a.mu.Lock()
	first := a.done == nil
	if first {
		a.done = make(chan struct{})
	}
	a.mu.Unlock()
	if first {
		defer close(a.done)
		a.err = release()
		return a.err
	}
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		select {
		case <-a.done: // an answer beats an ended ctx
			return a.err
		default:
			return unsure(ctx.Err())
		}
	}
}
