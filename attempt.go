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
	defer a.recovered()
	fn()
}

// recovered, deferred, keeps a panic for failure.
func (a *attempt) recovered() {
	if p := recover(); p != nil {
		a.panicked, a.done = p, over
	}
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
