package locker

import (
	"context"
	"errors"
	"time"

	"github.com/flockctx/flockctx/internal/lineage"
)

// Do locks name, calls fn, and releases the lock when fn returns, panics or calls
// [runtime.Goexit]. The context that fn gets has ctx's values and deadline, and ends
// with ctx or with the lock, whichever ends first; [context.Cause] tells which.
//
// Do returns the error of Lock, in which case fn was not called, or fn's error
// joined with that of the release. So it returns an error that matches [ErrLost] if
// the lock was lost, even where fn succeeded: another holder may have been inside.
func Do(ctx context.Context, l Locker, name string, m Mode, fn func(context.Context) error) (err error) {
	h, err := l.Lock(ctx, name, m)
	if err != nil {
		return err
	}
	defer func() {
		// The release must not be skipped because ctx has ended. By the end
		// of Cleanup the lock is free, as a rule, even without an answer.
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(l.Traits().Cleanup, time.Second))
		defer cancel()
		if uerr := h.Unlock(uctx); uerr != nil {
			err = join(err, uerr)
		}
	}()

	c := &doContext{held: h.Context()}
	c.Context, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	defer context.AfterFunc(c.held, c.lost)()
	return fn(c)
}

func join(err, uerr error) error {
	if err == nil {
		return uerr
	}
	return errors.Join(err, uerr)
}

// doContext is the caller's context, ended also by the lock's.
type doContext struct {
	context.Context
	cancel context.CancelCauseFunc
	held   context.Context
}

func (c *doContext) lost() { c.cancel(context.Cause(c.held)) }

// Err asks the lock's context itself: that of an engine looks at the clock, and so
// knows of a lapsed lease before the timer that would tell has run.
func (c *doContext) Err() error {
	if c.held.Err() != nil {
		c.lost()
	}
	return c.Context.Err()
}

// Value adds what the lock's context has beyond the caller's, which may have the
// lineage of a lock further out.
func (c *doContext) Value(key any) any {
	if key == (lineage.Key{}) {
		return c.held.Value(key)
	}
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.held.Value(key)
}
