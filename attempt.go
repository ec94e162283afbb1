package flockctx

import (
	"context"
	"time"

	"github.com/flockctx/flockctx/internal/gate"
)

// An attempt is one call that wants a lock.
//
// The context belongs to the caller, and any of its methods may panic, as those of a
// request that its framework has recycled do. While nothing is taken that does not
// matter. From then on each call of one goes through ask: a panic ends the attempt like
// the end of the context, and goes on from failure, when all is given back.
type attempt struct {
	ctx      context.Context
	try      bool // fail rather than wait
	once     bool // of LockAll: fail with the package's own errors, and rather than start again
	alone    bool // no other goroutine knows the handle, so none can close it
	panicked any  // what the context panicked with

	start    int64           // nanotime when it began to wait, 0 if it did not
	done     <-chan struct{} // the context's, once it waits
	deadline time.Time       // likewise; zero where there is none
	gate     *gate.Gate      // the gate it waited at last, nil if it did not
	trace    trace           // whom to tell
	rounds   int             // how often the path named another file than the one that was locked
}

// epoch makes readings of the monotonic clock fit an int64.
var epoch = time.Now()

func nanotime() int64 { return int64(time.Since(epoch)) }

func newAttempt(ctx context.Context) attempt {
	if ctx == nil {
		panic("flockctx: nil context")
	}
	return attempt{ctx: ctx}
}

func newTry() attempt { return attempt{ctx: context.Background(), try: true} }

// waits notes that a is about to wait.
func (a *attempt) waits() {
	if a.start == 0 {
		a.start = nanotime()
		a.ask(func() {
			a.done = a.ctx.Done()
			a.deadline, _ = a.ctx.Deadline()
		})
	}
	if a.trace.Tracer != nil && a.trace.began == 0 && a.panicked == nil {
		a.ask(a.tellWait)
	}
}

// over is the channel done of a context that panicked.
var over = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// ask calls fn, which asks the context.
func (a *attempt) ask(fn func()) {
	defer func() {
		if p := recover(); p != nil {
			a.panicked, a.done = p, over
		}
	}()
	fn()
}

// ended reports whether the context has ended.
func (a *attempt) ended() (yes bool) {
	if a.isDone() {
		return true
	}
	defer func() {
		if p := recover(); p != nil {
			a.panicked, a.done, yes = p, over, true
		}
	}()
	return a.ctx.Err() != nil
}

// isDone is ended as far as the channel of one that waits tells.
func (a *attempt) isDone() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// onEnd has fn called, in a goroutine of its own, when the context ends. With stop it
// is not called any more, or has returned.
func (a *attempt) onEnd(fn func()) (stop func()) {
	if a.done == nil {
		return func() {}
	}
	ended := make(chan struct{})
	detach := context.AfterFunc(quiet{a.ctx, a.done}, func() {
		defer close(ended)
		fn()
	})
	return func() {
		if !detach() {
			<-ended
		}
	}
}

// quiet is the context of an attempt as package context may see it: that asks a context
// which is not its own in a goroutine of its own, where a panic would end the process.
type quiet struct {
	ctx  context.Context
	done <-chan struct{}
}

func (q quiet) Deadline() (d time.Time, ok bool) { return d, false }
func (q quiet) Done() <-chan struct{}            { return q.done }

func (q quiet) Err() error {
	select {
	case <-q.done:
		return context.Canceled
	default:
		return nil
	}
}

// Value lets package context recognize its own contexts, which need no goroutine.
func (q quiet) Value(key any) any {
	defer func() { _ = recover() }()
	return q.ctx.Value(key)
}

// endError returns an error for the end of the context that matches both its Err and
// its cause.
func (a *attempt) endError() error {
	err, cause := a.ctx.Err(), context.Cause(a.ctx)
	if err == nil { // which no context should do
		err = context.Canceled
	}
	if cause != nil && !identical(err, cause) {
		err = &causedError{err, cause}
	}
	if a.rounds >= tellingRounds {
		err = &causedError{err, errUnstable}
	}
	return err
}

// identical reports whether a and b are one error, whatever types they are of.
func identical(a, b error) (same bool) {
	defer func() { _ = recover() }() // types that cannot be compared
	return a == b
}
