package flockctx

import (
	"context"
	"sync"
	"time"

	"github.com/flockctx/flockctx/internal/quiet"
)

// A trace is how an attempt tells its tracer. The zero value tells nobody. It is part of
// the attempt, and holds no event: an allocation for each lock would cost 5 % of it.
type trace struct {
	*Tracer
	of    *Flock
	op    string
	mode  Mode
	ctx   context.Context // for the hooks
	began int64           // nanotime of the wait, 0 if there is none
	ticks *ticks          // of StillWaiting, nil while it is not to be called
}

// traced notes whom to tell of a, which wants op of l. The mode comes later.
func (a *attempt) traced(l *Flock, op string) {
	if a.trace.Tracer = tracerOf(l.opts); a.trace.Tracer != nil {
		a.trace.of, a.trace.op, a.trace.ctx, a.trace.began = l, op, a.ctx, 0
	}
}

// inMode notes that a wants mode m now.
func (t *trace) inMode(m Mode) {
	t.mode = m
	if t.ticks != nil {
		t.ticks.mu.Lock()
		defer t.ticks.mu.Unlock()
		t.ticks.event.Mode = m
	}
}

// now returns the event as it is now.
func (t *trace) now() Event {
	e := t.of.event(t.op, t.mode)
	if t.began != 0 {
		e.Waited = waitedSince(t.began)
	}
	return e
}

// waitedSince returns the time of a wait, which is never zero.
func waitedSince(began int64) time.Duration { return time.Duration(max(nanotime()-began, 1)) }

// tellWait tells that the wait begins.
func (a *attempt) tellWait() {
	t := &a.trace
	e := t.now()
	t.began = nanotime()
	if t.Waiting != nil {
		if ctx := t.Waiting(t.ctx, e); ctx != nil {
			t.ctx = ctx
		}
	}
	if t.StillWaiting != nil {
		ctx, cancel := context.WithCancel(quiet.Context{Of: a.ctx, Channel: a.done})
		t.ticks = &ticks{
			hook: t.StillWaiting, ctx: waitContext{ctx, t.ctx}, cancel: cancel,
			event: e, began: t.began, done: a.done, due: time.Second,
		}
		a.done = ctx.Done()
		t.ticks.start()
	}
}

// endWait ends what tellWait began. StillWaiting is not called any more, or has returned;
// what it panicked with is the attempt's.
func (a *attempt) endWait() {
	if a.trace.ticks != nil {
		a.endTicks()
	}
}

func (a *attempt) endTicks() {
	s := a.trace.ticks
	a.trace.ticks = nil
	p := s.stop()
	if a.panicked == nil {
		a.done = s.done
	}
	if p != nil {
		a.panicked, a.done = p, over
	}
}

// tellGrant tells of the grant of l, for which there is a trace. It returns errEnded where
// a hook panicked: the lock is to be given back then, and the tracer knows.
func (a *attempt) tellGrant(l *Flock) error {
	a.endWait()
	if a.panicked != nil {
		return errEnded
	}
	l.granted = nanotime()
	a.tellAcquired()
	if a.panicked == nil {
		return nil
	}
	l.released("lock", a.trace.mode, nil) // what this panics with comes second
	return errEnded
}

// tellConverted tells that a handle is converted, before the gate lets others in beside
// it. It stays so where a hook panics.
func (a *attempt) tellConverted() {
	if a.trace.Tracer != nil {
		a.endWait()
		a.tellAcquired()
	}
}

// tellAcquired ends the trace.
func (a *attempt) tellAcquired() {
	t := &a.trace
	hook := t.Acquired
	t.Tracer = nil
	if hook != nil {
		defer a.recovered()
		hook(t.ctx, t.now())
	}
}

// tellFailure tells of the end without a lock, and ends the trace.
func (a *attempt) tellFailure(err error) {
	t := &a.trace
	if t.Tracer == nil {
		return
	}
	hook := t.Failed
	t.Tracer = nil
	if hook != nil {
		e := t.now()
		e.Err = err
		a.ask(func() { hook(t.ctx, e) })
	}
}

// startAgain ends the trace of a call that gives up what it has, to begin anew with other
// handles. Where a wait was told its end is.
func (a *attempt) startAgain() {
	a.endWait()
	if a.trace.Tracer != nil && a.trace.began != 0 {
		a.tellFailure(errReplaced)
	}
	a.trace.Tracer = nil
}

// ticks call StillWaiting, in the goroutine of their timer, until the wait is over.
type ticks struct {
	hook   func(context.Context, Event)
	ctx    context.Context    // for the hook
	cancel context.CancelFunc // ends the wait, and ctx
	began  int64
	done   <-chan struct{} // that of the attempt, in place of which stands one that cancel closes

	mu       sync.Mutex // held while the hook runs; guards the rest
	event    Event
	due      time.Duration // of the next one, from the beginning of the wait
	timer    *time.Timer
	over     bool // there is no next one
	panicked any  // what the hook panicked with
}

func (s *ticks) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.due, s.tick)
}

func (s *ticks) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			s.over, s.panicked = true, p
			s.cancel()
		}
	}()
	e := s.event
	e.Waited = waitedSince(s.began)
	s.hook(s.ctx, e)
	waited := waitedSince(s.began)
	for s.due <= waited {
		s.due *= 2
	}
	s.timer.Reset(s.due - waited)
}

// stop returns what the hook panicked with. The context ends first, so that a hook which
// runs returns.
func (s *ticks) stop() (panicked any) {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
	s.over = true
	return s.panicked
}

// waitContext is the context of StillWaiting: it ends with the wait, and has the values of
// the other hooks.
type waitContext struct {
	context.Context
	values context.Context
}

func (c waitContext) Value(key any) any { return c.values.Value(key) }
