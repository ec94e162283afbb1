package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"time"
)

// A Tracer is told what the locks of a program do. Any field may be nil. It is set for
// the process by [SetTracer], or for a handle by Options.Tracer; then both are told, that
// of the process first.
//
// Of one handle grants and releases come one after the other, in the order in which they
// happen; of one file, too, as far as this process goes. Hooks run in the goroutine of
// the call, which goes on when they return, with no mutex held. They may call [Holders],
// [Snapshot] and lock other files.
//
// A hook that panics ends its call, whose caller gets the panic: a Lock gives back what it
// has taken, Unlock and Close release, and a Convert leaves the lock held, converted where
// it was Acquired that panicked.
type Tracer struct {
	// Waiting: a call begins to wait; Acquired or Failed will tell how that ends. The
	// context that it returns is given to the other three of the call, and may carry a
	// span, say; nil leaves it as it is. It does not govern the wait.
	Waiting func(ctx context.Context, e Event) context.Context

	// StillWaiting: the call has waited for 1 s; and again each time that has doubled.
	// It runs in a goroutine of its own. The wait does not end before it returns: so one
	// that takes its time looks at ctx, which is done when the wait is over.
	StillWaiting func(ctx context.Context, e Event)

	// Acquired: a lock was granted, waited for or not, or converted to another mode. The
	// call is about to return nil; but LockAll, which still may find that another file is
	// not to be had, gives all back then.
	Acquired func(ctx context.Context, e Event)

	// Failed: a call ends without the lock, or without converting it; e.Err says why. Or
	// LockAll waited for a file that was replaced meanwhile, and begins anew.
	Failed func(ctx context.Context, e Event)

	// Released: a lock was given back by Unlock or Close, or lost by Convert.
	Released func(e Event)
}

// An Event is what happened to a lock.
type Event struct {
	Op        string // what was called: "lock", "convert", "unlock" or "close"
	Path      string // as the handle's Name
	Mode      Mode   // that is asked for, or was held
	Mechanism Mechanism

	Start, Length int64 // of an OFD lock; a Length of 0 reaches to the end of the file

	Waited time.Duration // until now; zero where the call did not wait
	Held   time.Duration // of Released: from the grant on; zero where no tracer saw that
	Err    error         // of Failed, and of Released where something went wrong

	// Flock is the handle, nil for a lock of package locker. A hook must not lock, unlock,
	// convert or close it.
	Flock *Flock
}

// Holders returns who holds the lock of the event, or waits for it, at this moment: see
// [Holders]. It asks the system, which takes a while.
//
// Of an event without a handle, as those of package locker are, it fails with an error
// that matches [errors.ErrUnsupported].
func (e Event) Holders() ([]Holder, error) {
	if e.Flock == nil {
		return nil, &fs.PathError{Op: "list the holders of", Path: e.Path, Err: errors.ErrUnsupported}
	}
	return Holders(e.Flock.where())
}

var processTracer atomic.Pointer[Tracer]

// SetTracer sets the tracer of the process, or none with nil, and returns the one that
// was set. Calls that are under way tell the one that was set when they began; locks that
// are held already report their release to the new one.
func SetTracer(t *Tracer) (old *Tracer) { return processTracer.Swap(t) }

// JoinTracers returns a tracer that tells all of ts, in their order; nil ones are left
// out. The context that one's Waiting returns is given to the next one. Where one of them
// panics the next ones are told all the same, but for Waiting.
func JoinTracers(ts ...*Tracer) *Tracer {
	joined := &Tracer{}
	for _, t := range ts {
		if t == nil {
			continue
		}
		joined.Waiting = joinWaiting(joined.Waiting, t.Waiting)
		joined.StillWaiting = joinHooks(joined.StillWaiting, t.StillWaiting)
		joined.Acquired = joinHooks(joined.Acquired, t.Acquired)
		joined.Failed = joinHooks(joined.Failed, t.Failed)
		if a, b := joined.Released, t.Released; a != nil && b != nil {
			joined.Released = func(e Event) { defer b(e); a(e) }
		} else if b != nil {
			joined.Released = b
		}
	}
	return joined
}

func joinWaiting(a, b func(context.Context, Event) context.Context) func(context.Context, Event) context.Context {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	return func(ctx context.Context, e Event) context.Context {
		c := a(ctx, e)
		if c == nil {
			c = ctx
		}
		if d := b(c, e); d != nil {
			return d
		}
		return c
	}
}

func joinHooks(a, b func(context.Context, Event)) func(context.Context, Event) {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return func(ctx context.Context, e Event) { defer b(ctx, e); a(ctx, e) }
}

// tracerOf returns whom to tell of what happens to a handle with settings s, nil for
// nobody.
func tracerOf(s *settings) *Tracer {
	switch p := processTracer.Load(); {
	case s.Tracer == nil:
		return p
	case p == nil:
		return s.Tracer
	default:
		return JoinTracers(p, s.Tracer)
	}
}

// event returns an event of l.
func (l *Flock) event(op string, m Mode) Event {
	return Event{Op: op, Path: l.Name(), Mode: m, Mechanism: l.opts.Mechanism, Start: l.opts.Start, Length: l.opts.Length, Flock: l}
}

// released tells of the end of a lock of l. It is called before anybody else of this
// process can have the lock, so what a hook panics with is returned.
func (l *Flock) released(op string, m Mode, err error) (panicked any) {
	granted := l.granted
	l.granted = 0
	t := tracerOf(l.opts)
	if t == nil || t.Released == nil {
		return nil
	}
	defer func() { panicked = recover() }()
	e := l.event(op, m)
	e.Err = err
	if granted != 0 {
		e.Held = time.Duration(max(nanotime()-granted, 1))
	}
	t.Released(e)
	return nil
}
