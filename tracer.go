package flockctx

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A Tracer is told what the locks of a program do. Any field may be nil. It is set for
// the process by [SetTracer], or for a handle by Options.Tracer; then both are told, that
// of the process first.
//
// Of one handle the events come one after the other, in the order in which it was locked
// and released; of one file, too, as far as this process goes. Hooks run in the goroutine
// of the call, which goes on when they return, with no mutex held; but StillWaiting runs
// in one of its own. They may call [Holders], [Snapshot] and lock other files. A hook
// that panics ends its call: nothing of that is left taken, and the panic reaches the
// caller.
type Tracer struct {
	// Waiting: a call begins to wait. The context that it returns is given to the other
	// three of the call, and may carry a span, say; nil leaves it as it is. It does not
	// govern the wait.
	Waiting func(ctx context.Context, e Event) context.Context

	// StillWaiting: the call has waited for 1 s; and again each time that has doubled.
	StillWaiting func(ctx context.Context, e Event)

	// Acquired: a lock was granted, waited for or not, or converted. The call is about
	// to return nil.
	Acquired func(ctx context.Context, e Event)

	// Failed: a call ends without the lock, or without converting it; e.Err says why.
	Failed func(ctx context.Context, e Event)

	// Released: a lock was given back by Unlock or Close, or lost by Convert.
	Released func(e Event)
}

// An Event is what happened to a lock.
type Event struct {
	Op        string // "lock", "convert", "unlock" or "close"
	Path      string // as the handle's Name
	Mode      Mode   // that is asked for, or was held
	Mechanism Mechanism
	Waited    time.Duration // until now; zero where the call did not wait
	Held      time.Duration // of Released: from the grant on; zero where no tracer saw that
	Err       error         // of Failed, and of Released where something went wrong
	Flock     *Flock        // the handle; not to be locked, unlocked, converted or closed inside a hook
}

// Holders returns who holds the lock of the event, or waits for it, at this moment: see
// [Holders]. It asks the system, which takes a while.
func (e Event) Holders() ([]Holder, error) { return Holders(e.Flock.where()) }

var processTracer atomic.Pointer[Tracer]

// SetTracer sets the tracer of the process, or none with nil, and returns the one that
// was set. Calls that are under way tell the one that was set when they began; locks that
// are held already report their release to the new one.
func SetTracer(t *Tracer) (old *Tracer) { return processTracer.Swap(t) }

// JoinTracers returns a tracer that tells all of ts, in their order; nil ones are left
// out. The context that one's Waiting returns is given to the next one.
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
			joined.Released = func(e Event) { a(e); b(e) }
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
	return func(ctx context.Context, e Event) { a(ctx, e); b(ctx, e) }
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
	return Event{Op: op, Path: l.Name(), Mode: m, Mechanism: l.opts.Mechanism, Flock: l}
}

// A trace is an attempt of which a tracer is told.
type trace struct {
	*Tracer
	ctx   context.Context // for the hooks
	event Event
	began int64           // nanotime of the wait, 0 if there is none
	done  <-chan struct{} // that of the attempt, in place of which stands one that a panic closes

	mu       sync.Mutex         // held while StillWaiting runs; guards the rest
	timer    *time.Timer        // to the next one
	over     bool               // there is no next one
	cancel   context.CancelFunc // ends the wait
	panicked any                // what StillWaiting panicked with
}

// traced notes whom to tell of a, which wants op of l in mode m.
func (a *attempt) traced(l *Flock, op string, m Mode) {
	a.trace = nil
	if t := tracerOf(l.opts); t != nil {
		a.trace = &trace{Tracer: t, ctx: a.ctx, event: l.event(op, m)}
	}
}

// tellWait tells that the wait begins.
func (a *attempt) tellWait() {
	t := a.trace
	t.began = nanotime()
	if t.Waiting != nil {
		if ctx := t.Waiting(t.ctx, t.event); ctx != nil {
			t.ctx = ctx
		}
	}
	if t.StillWaiting == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(quiet{a.ctx, a.done})
	t.done, a.done = a.done, ctx.Done()
	next := time.Second
	t.timer = time.AfterFunc(next, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.over {
			return
		}
		t.timer.Reset(next) // the wait will have doubled then
		next *= 2
		defer func() {
			if p := recover(); p != nil {
				t.over, t.panicked = true, p
				t.cancel()
			}
		}()
		t.StillWaiting(t.ctx, t.now())
	})
}

// now returns the event as it is now.
func (t *trace) now() Event {
	e := t.event
	if t.began != 0 {
		e.Waited = time.Duration(max(nanotime()-t.began, 1))
	}
	return e
}

// endWait ends what tellWait began. StillWaiting is not called any more, or has returned;
// what it panicked with is the attempt's.
func (a *attempt) endWait() {
	t := a.trace
	if t == nil || t.timer == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer.Stop()
	if t.over = true; t.cancel != nil {
		t.cancel()
		t.cancel, a.done = nil, t.done
	}
	if t.panicked != nil {
		a.panicked, a.done = t.panicked, over
	}
}

// tellGrant tells of the grant of l, for which there is a trace. It returns errEnded where
// a hook panicked: the lock is to be given back then, and the tracer knows.
func (a *attempt) tellGrant(l *Flock) error {
	a.endWait()
	t := a.trace
	if a.panicked == nil {
		if t.event.Op == "lock" {
			l.granted = nanotime()
		}
		if t.Acquired == nil {
			return nil
		}
		a.ask(func() { t.Acquired(t.ctx, t.now()) })
		if a.panicked == nil {
			return nil
		}
		if t.event.Op == "lock" && t.Released != nil {
			a.ask(func() { t.Released(t.now()) })
			a.trace = nil
		}
	}
	return errEnded
}

// tellFailure tells of the end without a lock.
func (a *attempt) tellFailure(err error) {
	t := a.trace
	if t == nil || t.Failed == nil {
		return
	}
	e := t.now()
	e.Err = err
	a.ask(func() { t.Failed(t.ctx, e) })
}

// released tells of the end of a lock of l. It is called before anybody else of this
// process can have the lock, so what a hook panics with is returned.
func (l *Flock) released(op string, m Mode, err error) (panicked any) {
	t := tracerOf(l.opts)
	if t == nil || t.Released == nil {
		return nil
	}
	defer func() { panicked = recover() }()
	e := l.event(op, m)
	e.Err = err
	if l.granted != 0 {
		e.Held = time.Duration(max(nanotime()-l.granted, 1))
		l.granted = 0
	}
	t.Released(e)
	return nil
}
