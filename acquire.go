package flockctx

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// An attempt is one call that wants a lock.
type attempt struct {
	ctx   context.Context
	try   bool  // fail rather than wait
	once  bool  // fail with errStale rather than start again
	alone bool  // no other goroutine knows the handle, so none can close it
	start int64 // nanotime when it began to wait, 0 if it did not
	gate  *gate // the gate it waited at last, nil if it did not
}

// waits notes that a is about to wait.
func (a *attempt) waits() {
	if a.start == 0 {
		a.start = nanotime()
	}
}

// lockNew makes a handle and locks it.
func lockNew(path string, opts *Options, a *attempt) (*Flock, error) {
	l := New(path, opts)
	if a.ctx.Err() != nil {
		return nil, l.failure("lock", l.mode, a, errEnded)
	}
	if l.opts.invalid != nil {
		return nil, pathError("lock", path, l.opts.invalid)
	}
	// No other goroutine knows the handle: it is entered without l.mu.
	a.alone = true
	l.taken = true
	l.state = locking
	err := l.acquire(a, l.mode)
	if err == errStale {
		err = l.acquireCurrent(a, l.mode)
	}
	if err != nil {
		return nil, l.failure("lock", l.mode, a, err)
	}
	l.state = locked
	return l, nil
}

// lock is the way to a lock, from the handle to the verified grant.
func (l *Flock) lock(a *attempt) error {
	if a.ctx.Err() != nil {
		return l.failure("lock", l.Mode(), a, errEnded)
	}
	if l.opts.invalid != nil {
		return pathError("lock", l.path, l.opts.invalid)
	}
	l.mu.Lock()
	if !l.closing && !l.claim() {
		if a.try {
			l.mu.Unlock()
			return l.failure("lock", l.Mode(), a, errBusy)
		}
		a.waits()
		err := l.claimWait(a.ctx)
		a.gate = l.turn
		if err != nil {
			return l.failure("lock", l.Mode(), a, err)
		}
		l.mu.Lock()
	}
	if l.closing {
		l.mu.Unlock()
		return pathError("lock", l.path, fs.ErrClosed)
	}
	l.state = locking
	m := l.mode
	l.mu.Unlock()

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
	handed := l.pass()
	l.mu.Unlock()
	yieldAfter(handed)
	return l.failure("lock", m, a, err)
}

// failure makes the error that the caller gets from the package's own.
func (l *Flock) failure(op string, m Mode, a *attempt, err error) error {
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
	case errStale: // to LockAll, which starts again
		return err
	case errEnded:
		err = contextError(a.ctx)
	case errBusy:
		err = ErrLocked
	default:
		if lost != nil {
			return pathError(op, l.path, lost)
		}
		if _, ok := err.(*fs.PathError); ok {
			return err
		}
		return pathError(op, l.path, err)
	}
	if lost != nil {
		err = &lostError{err}
	}
	return &BusyError{Path: l.path, Mode: m, Waited: waited, Err: err}
}

// acquire opens the file if it is not open, queues in this process, then at the
// kernel, and verifies the grant. On an error the handle is as before the call,
// except that after errStale its file is closed. The caller owns l.desc and l.q.
//
// Here and in close, the uncontended path has few functions between itself and its
// system calls. The kernel, guarding against speculation, makes the processor forget
// its return addresses, so after a system call each return costs a misprediction:
// with these calls flattened, Lock and Close took 5 % less.
func (l *Flock) acquire(a *attempt, m Mode) (err error) {
	opened := l.fresh
	l.fresh = false
	if l.desc.file == nil && l.q == nil {
		if err := l.open(a); err != nil {
			return err
		}
		opened = true
	}
	q := l.q
	if q == nil {
		q = join(queueKey{l.desc.id, l.opts.Mechanism, l.opts.Start, l.opts.Length})
		l.q = q
	} else {
		q.mu.Lock()
	}
	switch {
	case q.tryEnter(m), opened && !a.try && q.spin(m):
		q.addHolder(l)
		q.mu.Unlock()
	case a.try:
		q.mu.Unlock()
		l.drop(opened)
		return errBusy
	default:
		a.waits()
		if err := q.enter(a.ctx, l.closedFor(a), m); err != nil {
			l.drop(opened)
			return err
		}
		a.gate = &q.gate
		q.mu.Lock()
		q.addHolder(l)
		q.mu.Unlock()
	}

	gaveWay := a.gate != nil && m == Exclusive && l.giveWay(a)
	if l.desc.file == nil {
		r := l.request(opTry)
		r.mode = m
		err = sysLock(l.desc.fd, r)
	} else {
		err = l.take(m)
	}
	inside := true
	if gaveWay {
		q.adjust(err == errBusy)
	}
	if err == errBusy && !a.try {
		a.waits()
		inside, err = l.waitForeign(a, m)
	}
	if err == nil {
		q.observe(opened || l.borrowed)
		id := l.desc.id
		if !l.borrowed {
			id, err = identifyPath(l.path)
		}
		if err = l.accept(a, opened, id, err); err == nil {
			return nil
		}
		if uerr := l.give(m); uerr != nil {
			// What cannot be unlocked goes with its descriptor.
			opened = true
		}
	}
	var handed bool
	if inside {
		q.mu.Lock()
		q.removeHolder(l)
		handed = q.leave(m)
		q.mu.Unlock()
	}
	if errors.Is(err, fs.ErrClosed) && !l.borrowed && !opened && !l.isClosing() {
		err = errStale // the caller closed File: open it again
	}
	l.drop(opened || err == errStale)
	yieldAfter(handed)
	return err
}

// request returns a request for the handle's lock.
func (l *Flock) request(o op) request {
	return request{op: o, mechanism: l.opts.Mechanism, start: l.opts.Start, length: l.opts.Length}
}

// take asks the kernel for the lock: nil, errBusy, or another error.
func (l *Flock) take(m Mode) error {
	r := l.request(opTry)
	r.mode = m
	if l.borrowed && l.opts.Mechanism == OFD && l.overlaps() {
		return errOverlap
	}
	if l.borrowed && m == Shared {
		return l.lend(r)
	}
	return l.desc.lock(r)
}

// give gives the lock back to the kernel.
func (l *Flock) give(m Mode) error {
	l.q.publish()
	r := l.request(opUnlock)
	if l.borrowed && m == Shared {
		return l.takeBack(r)
	}
	return l.desc.lock(r)
}

// leave takes l, which does not hold the lock any more, off its queue's holders,
// and with quit off the queue.
func (l *Flock) leave(quit bool) (handed bool) {
	q := l.q
	q.mu.Lock()
	q.removeHolder(l)
	handed = q.gate.leave(l.mode)
	if quit {
		q.quit()
		l.q = nil
	}
	q.mu.Unlock()
	return handed
}

// drop closes the file of an unlocked handle if all is set, and otherwise keeps it.
func (l *Flock) drop(all bool) {
	if !all && !(l.borrowed && l.guard == nil) {
		return
	}
	if q := l.q; q != nil {
		q.mu.Lock()
		q.quit()
		q.mu.Unlock()
	}
	l.mu.Lock()
	l.q = nil
	l.unguard()
	d := l.desc
	if !l.borrowed {
		l.desc = descriptor{}
	}
	l.mu.Unlock()
	if !l.borrowed {
		d.close()
	}
}
