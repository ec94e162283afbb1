package locker

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/flockctx/flockctx"
)

// Trace returns l with its calls told to t, as those of files are: [flockctx.Tracer]. Path
// of an event is the name, Flock is nil. What differs from files:
//
//   - Every Lock begins with Waiting, since it waits for a server at least.
//   - Released comes, in a goroutine of its own, when the Context of the [Held] ends. The
//     Op is "unlock", and Err is nil where the holder wished it; where the lock was lost,
//     Err matches [ErrLost].
//   - StillWaiting with the Op "renew" says that half of the time for which ownership was
//     proved has passed without news of the server; Waited is how long. It comes again
//     with each half of what is left. Its context ends with the Held's.
//
// What l is besides a Locker, an [Inspector] and an [io.Closer], the result is too; if l is
// not, their methods fail with [errors.ErrUnsupported], or do nothing. A nil t is l.
func Trace(l Locker, t *flockctx.Tracer) Locker {
	if t == nil {
		return l
	}
	return &traced{l, t}
}

type traced struct {
	Locker
	t *flockctx.Tracer
}

func (l *traced) Holders(ctx context.Context, name string) ([]Holder, error) {
	if i, ok := l.Locker.(Inspector); ok {
		return i.Holders(ctx, name)
	}
	return nil, errors.ErrUnsupported
}

func (l *traced) Close() error {
	if c, ok := l.Locker.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (l *traced) Lock(ctx context.Context, name string, m Mode) (Held, error) {
	e := flockctx.Event{Op: "lock", Path: name, Mode: m}
	began, told := time.Now(), ctx
	if l.t.Waiting != nil {
		if c := l.t.Waiting(ctx, e); c != nil {
			told = c
		}
	}
	stop := l.stillWaiting(ctx, told, e, began)
	h, err := l.Locker.Lock(ctx, name, m)
	stop()
	e.Waited = time.Since(began)
	return l.outcome(told, e, h, err)
}

func (l *traced) TryLock(ctx context.Context, name string, m Mode) (Held, error) {
	h, err := l.Locker.TryLock(ctx, name, m)
	return l.outcome(ctx, flockctx.Event{Op: "lock", Path: name, Mode: m}, h, err)
}

// hookContext is the context of StillWaiting: it ends with what the hook tells of, and has
// the values of the other hooks.
type hookContext struct {
	context.Context
	values context.Context
}

func (c hookContext) Value(key any) any { return c.values.Value(key) }

// stillWaiting tells of a long wait until stop is called, which ends the context of a hook
// that runs, and waits for it.
func (l *traced) stillWaiting(ctx, told context.Context, e flockctx.Event, began time.Time) (stop func()) {
	if l.t.StillWaiting == nil {
		return func() {}
	}
	wait, cancel := context.WithCancel(ctx)
	var mu sync.Mutex // held while the hook runs; guards the rest
	over, next := false, time.Second
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(next, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		timer.Reset(next)
		next *= 2
		e.Waited = time.Since(began)
		l.t.StillWaiting(hookContext{wait, told}, e)
	})
	return func() {
		cancel() // first: the hook may wait for it
		mu.Lock()
		defer mu.Unlock()
		over = true
		timer.Stop()
	}
}

// outcome tells how a call ended, and watches over what it got.
func (l *traced) outcome(ctx context.Context, e flockctx.Event, h Held, err error) (Held, error) {
	if err != nil {
		if e.Err = err; l.t.Failed != nil {
			l.t.Failed(ctx, e)
		}
		return nil, err
	}
	if l.t.Acquired != nil {
		returned := false
		defer func() {
			if !returned { // the hook panics: nobody gets h
				h.Unlock(context.WithoutCancel(ctx))
			}
		}()
		l.t.Acquired(ctx, e)
		returned = true
	}
	l.watch(ctx, e, h)
	return h, nil
}

// watch tells of late renewals and of the end of h.
func (l *traced) watch(ctx context.Context, e flockctx.Event, h Held) {
	granted := time.Now()
	e.Waited = 0
	stop := func() {}
	if until, ok := h.Valid(); ok && l.t.StillWaiting != nil {
		stop = l.watchRenewals(ctx, e, h, granted, until)
	}
	context.AfterFunc(h.Context(), func() {
		stop()
		if l.t.Released == nil {
			return
		}
		e := e
		e.Op, e.Held = "unlock", time.Since(granted)
		if cause := context.Cause(h.Context()); !errors.Is(cause, ErrReleased) {
			e.Err = cause
		}
		l.t.Released(e)
	})
}

func (l *traced) watchRenewals(ctx context.Context, e flockctx.Event, h Held, granted, until time.Time) (stop func()) {
	var mu sync.Mutex // held while the hook runs; guards the rest
	over, news := false, granted
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	half := func() time.Duration { return max(time.Until(until)/2, time.Millisecond) }
	timer = time.AfterFunc(half(), func() {
		mu.Lock()
		defer mu.Unlock()
		if over || h.Context().Err() != nil {
			return
		}
		now := time.Now()
		if latest, _ := h.Valid(); latest.After(until) {
			until, news = latest, now
		} else {
			e.Op, e.Waited, e.Held = "renew", now.Sub(news), now.Sub(granted)
			l.t.StillWaiting(hookContext{h.Context(), ctx}, e)
		}
		timer.Reset(half())
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		timer.Stop()
	}
}
