package locker

import (
	"context"
	"errors"
	"time"

	"github.com/flockctx/flockctx/internal/lineage"
)

// Do locks name, calls fn, and releases the lock when fn returns, panics or calls
// [runtime.Goexit]. The context that fn gets has ctx's values and deadline, and ends
// with ctx or with the lock, whichever ends first; [context.Cause] tells which, and
// [HeldFrom] returns the lock.
//
// Do returns the error of Lock, in which case fn was not called, or fn's error
// joined with that of the release. So it returns an error that matches [ErrLost] if
// the lock was lost, even where fn succeeded: another holder may have been inside.
// A nil fn panics before anything is locked.
func Do(ctx context.Context, l Locker, name string, m Mode, fn func(context.Context) error) error {
	if fn == nil {
		panic("locker: Do with a nil function")
	}
	h, err := l.Lock(ctx, name, m)
	if err != nil {
		return err
	}
	_, err = under(ctx, l, h, fn)
	return err
}

// under calls fn under h and releases it. lost tells whether h was lost before fn had
// returned.
func under(ctx context.Context, l Locker, h Held, fn func(context.Context) error) (lost bool, err error) {
	defer func() {
		lost = errors.Is(context.Cause(h.Context()), ErrLost)
		// The release must not be skipped because ctx has ended. By the end
		// of Cleanup the lock is free, as a rule, even without an answer.
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(l.Traits().Cleanup, time.Second))
		defer cancel()
		if uerr := h.Unlock(uctx); uerr != nil {
			err = join(err, uerr)
		}
	}()

	c := &doContext{h: h, held: h.Context()}
	c.Context, c.cancel = context.WithCancelCause(ctx)
	defer c.cancel(nil)
	defer context.AfterFunc(c.held, c.lost)()
	return false, fn(c)
}

func join(err, uerr error) error {
	if err == nil {
		return uerr
	}
	return errors.Join(err, uerr)
}

// HeldFrom returns the lock under which [Do] or [Lead] has called the function that was
// given ctx, the innermost one, for its Token and Valid. Its release is theirs; who
// calls Unlock all the same gives the lock up early, and ends ctx by that.
func HeldFrom(ctx context.Context) (h Held, ok bool) {
	h, ok = ctx.Value(heldKey{}).(Held)
	return h, ok
}

type heldKey struct{}

// doContext is the caller's context, ended also by the lock's.
type doContext struct {
	context.Context
	cancel context.CancelCauseFunc
	h      Held
	held   context.Context // h's
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
	switch key {
	case heldKey{}:
		return c.h
	case lineage.Key{}:
		return c.held.Value(key)
	}
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.held.Value(key)
}
