package flockctx

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"time"

	"github.com/flockctx/flockctx/internal/gate"
	"github.com/flockctx/flockctx/internal/sys"
)

// lockNew makes a handle and locks it.
func lockNew(path string, opts *Options, a *attempt) (*Flock, error) {
	refused := a.ctx.Err() != nil // which may panic, before anything is done
	l := New(path, opts)
	a.traced(l, "lock")
	a.trace.mode = l.opts.Mode
	if refused || l.opts.invalid != nil {
		return nil, l.failure("lock", l.opts.Mode, a, l.refusal(refused))
	}
	// No other goroutine knows the handle, which is entered without l.mu; but a tracer may
	// hand it on.
	a.alone = a.trace.Tracer == nil
	l.taken = true
	l.state = locking
	err := l.acquire(a, l.opts.Mode)
	if err == errStale {
		err = l.acquireCurrent(a, l.opts.Mode)
	}
	l.mu.Lock() // Snapshot knows the handle by now
	if err == nil {
		l.setState(locked)
	} else {
		l.setState(unlocked)
		l.passHandle() // to whom a hook has shown it
	}
	l.mu.Unlock()
	if err != nil {
		return nil, l.failure("lock", l.opts.Mode, a, err)
	}
	return l, nil
}

// refusal returns why there is nothing to try.
func (l *Flock) refusal(ended bool) error {
	if ended {
		return errEnded
	}
	return l.opts.invalid
}

// lock is the way to a lock of a handle that others may use too.
func (l *Flock) lock(a *attempt) error {
	a.traced(l, "lock")
	var ended bool
	if a.once {
		ended = a.ended() // LockAll may have taken something
	} else {
		ended = a.ctx.Err() != nil
	}
	if ended || l.opts.invalid != nil {
		return l.failure("lock", l.Mode(), a, l.refusal(ended))
	}
	l.mu.Lock()
	a.trace.mode = Mode(l.mode)
	if l.closing || !l.claim() {
		if err := l.claimSlowly(a); err != nil {
			return l.failure("lock", l.Mode(), a, err)
		}
	}
	l.state = locking
	m := Mode(l.mode)
	l.mu.Unlock()
	if m != a.trace.mode {
		a.trace.inMode(m) // another goroutine has converted the handle
	}

	err := l.acquire(a, m)
	if err == errStale && !a.once {
		err = l.acquireCurrent(a, m)
	}
	l.mu.Lock()
	if err == nil {
		l.setState(locked)
		l.mu.Unlock()
		return nil
	}
	l.setState(unlocked)
	handed := l.passHandle()
	l.mu.Unlock()
	yieldAfter(handed)
	return l.failure("lock", m, a, err)
}

// acquire opens the file if it is not open, queues in this process, takes the lock or
// waits for another process, and verifies the grant. On an error the handle is as before
// the call, except that after errStale its file is closed. The caller owns l.desc and
// l.q.
//
// Here and in Close, the uncontended path has few functions between itself and its
// system calls. The kernel, guarding against speculation, makes the processor forget
// its return addresses, so after a system call each return costs a misprediction:
// with these calls flattened, Lock and Close took 5 % less.
func (l *Flock) acquire(a *attempt, m Mode) (err error) {
	opened := l.fresh // for this call
	l.fresh = false
	if !l.desc.IsOpen() {
		if err := l.open(a); err != nil {
			return err
		}
		opened = true
	}
	if err := l.queue(a, m, opened); err != nil {
		l.closeFile(opened || err == errStale)
		return err
	}
	inside := true
	gaveWay := a.gate != nil && m == Exclusive && l.giveWay(a)
	if fd, bare := l.desc.Bare(); bare && !l.opts.Fair {
		err = sys.Lock(fd, l.request(sys.Try, m))
	} else {
		err = l.take(m)
	}
	if gaveWay {
		l.q.adjustPatience(err == errBusy)
	}
	switch {
	case err != errBusy:
	case l.outdated(a, opened):
		err = errStale
	case !a.try:
		a.waits()
		inside, err = l.waitForeign(a, m)
	}
	if err == nil {
		l.q.observe(opened || l.borrowed)
		switch {
		case l.borrowed:
		case l.opts.Root != nil:
			err = l.desc.VerifyIn(l.opts.Root, l.at)
		default:
			err = l.desc.Verify(l.at)
		}
		if err = l.accept(a, opened, err); err == nil {
			return nil
		}
		if uerr := l.unlockKernel(); uerr != nil {
			// What cannot be unlocked goes with its descriptor.
			opened = true
		}
	}
	var handed bool
	if inside {
		handed = l.leaveGate(m)
	}
	switch {
	case err == nil || l.borrowed:
	case sys.IsForgotten(err):
		err = errStale // the server has forgotten the file
	case errors.Is(err, fs.ErrClosed) && !opened && !l.isClosing():
		err = errStale // the caller closed File: open it again
	}
	l.closeFile(opened || err == errStale)
	yieldAfter(handed)
	return err
}

// queue takes the handle's place in front of the lock in this process, and goes inside
// the gate when it is its turn. On an error it is not inside.
func (l *Flock) queue(a *attempt, m Mode, opened bool) error {
	q := l.q
	if q == nil {
		q = join(l.key())
		l.q = q
	} else {
		q.lock()
	}
	switch gm := gate.Mode(m); {
	case q.gate.TryEnter(gm), opened && !a.try && q.gate.Spin(gm):
	default:
		q.unlock()
		switch {
		case l.outdated(a, opened):
			return errStale
		case a.try:
			return errBusy
		}
		a.waits()
		closed := l.closedFor(a)
		q.lock()
		q.joinWaiters(l.opts)
		if err := q.gate.Enter(a.done, closed, gm, l); err != nil {
			return err
		}
		a.gate = &q.gate
		q.lock()
	}
	q.addHolder(l)
	q.unlock()
	return nil
}

// take takes the lock if it is free. The handle is among the holders of its queue since it
// came inside, this time: see sharesOpenFile.
func (l *Flock) take(m Mode) error {
	if l.borrowed {
		if err := l.sharesOpenFile(); err != nil {
			return err
		}
	}
	if l.opts.Fair {
		return l.tryFair(l.request(sys.Try, m))
	}
	return l.desc.Lock(l.request(sys.Try, m))
}

// key returns what tells the handle's lock apart. Its file is open.
func (l *Flock) key() queueKey {
	return queueKey{l.desc.ID, l.opts.Mechanism, l.opts.Start, l.opts.Length}
}

// request returns a request for the handle's lock.
func (l *Flock) request(op sys.Op, m Mode) sys.Request {
	return sys.Request{Op: op, Shared: m == Shared, OFD: l.opts.Mechanism == OFD, Start: l.opts.Start, Length: l.opts.Length}
}

// failure makes the error that the caller gets from the package's own, which only LockAll
// gets as they are. It is called when all is given back: the context, which is asked for
// its error, and the hooks may panic.
func (l *Flock) failure(op string, m Mode, a *attempt, err error) error {
	a.endWait() // also of LockAll: what it gives back may have a hook panic
	a.trace.mode = m
	if a.once {
		return err
	}
	if a.panicked == nil {
		a.ask(func() { err = l.explain(op, m, a, err) })
	}
	if p := a.panicked; p != nil {
		a.tellFailure(fmt.Errorf("panic: %v", p))
		panic(p)
	}
	if a.tellFailure(err); a.panicked != nil {
		panic(a.panicked)
	}
	return err
}

// explain is failure without its hooks.
func (l *Flock) explain(op string, m Mode, a *attempt, err error) error {
	var lost *lostError
	errors.As(err, &lost)
	if lost != nil {
		err = lost.err
	}
	var waited time.Duration
	if a.start != 0 {
		waited = time.Duration(max(nanotime()-a.start, 1))
	}
	switch err {
	case errEnded:
		err = a.endError()
	case errBusy:
		err = ErrLocked
	default:
		if lost != nil {
			return pathError(op, l.Name(), lost)
		}
		if _, ok := err.(*fs.PathError); ok {
			return err
		}
		return pathError(op, l.Name(), err)
	}
	if lost != nil {
		err = &lostError{err}
	}
	return &BusyError{Path: l.Name(), Mode: m, Waited: waited, Err: err, at: l.where()}
}

// yieldAfter gives the processor to the goroutine to which the lock was just
// handed: a lock that nobody runs with is lost time for all.
func yieldAfter(handed bool) {
	if handed {
		runtime.Gosched()
	}
}
